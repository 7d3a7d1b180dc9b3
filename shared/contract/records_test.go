package contract

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// records makes clickstream records as the producer writes them, one in ten bad in
// one of the ways that the reference's rules know. The same seed gives the same.
func records(n int, seed uint64) []string {
	r := rand.New(rand.NewPCG(seed, 1))
	types := []string{"view", "view", "view", "cart", "purchase", "remove_from_cart"}
	brands := []string{`"xiaomi"`, `"samsung"`, `"apple"`, `"bosch"`, "null"}
	codes := []string{`"electronics.smartphone"`, `"computers.notebook"`, `"appliances.kitchen.hood"`, "null"}
	bad := []func(string) string{
		func(s string) string { return with(s, "price", "-100") },
		func(s string) string { return with(s, "price", "0") },
		func(s string) string { return with(s, "price", `"cheap"`) },
		func(s string) string { return without(s, "user_session") },
		func(s string) string { return without(s, "brand") },
		func(s string) string { return with(s, "event_type", `"wishlist"`) },
		func(s string) string { return with(s, "event_type", "3") },
		func(s string) string { return with(s, "product_id", "null") },
		func(s string) string { return with(s, "user_id", "512900744.5") },
		func(s string) string { return s[:len(s)-7] },
	}
	out := make([]string, n)
	for i := range out {
		record := envelope(avroSchema, fmt.Sprintf(`{"event_time":"2019-10-%02d %02d:%02d:%02d UTC","event_type":"%s","product_id":%d,"category_id":%d,`+
			`"category_code":%s,"brand":%s,"price":%s,"user_id":%d,"user_session":"%08x-%04x-4%03x-8%03x-%012x"}`,
			1+r.IntN(31), r.IntN(24), r.IntN(60), r.IntN(60), types[r.IntN(len(types))], 1_000_000+r.IntN(60_000_000), 2053013551932506112+r.Int64N(1e12),
			codes[r.IntN(len(codes))], brands[r.IntN(len(brands))], strconv.FormatFloat(float64(1+r.IntN(250_000))/100, 'f', -1, 64), 500_000_000+r.IntN(60_000_000),
			r.Uint32(), r.IntN(1<<16), r.IntN(1<<12), r.IntN(1<<12), r.Uint64()>>16))
		if i%10 == 9 {
			record = bad[r.IntN(len(bad))](record)
		}
		out[i] = record
	}
	return out
}

// changes makes the same events as Debezium's records, flat with schema or full.
func changes(n int, seed uint64, full bool) []string {
	schema := cdcSchema(zonedField)
	wrap := changedSchema(schema)
	out := records(n, seed)
	for i, record := range out {
		row := strings.TrimSuffix(strings.TrimPrefix(record, `{"schema":`+avroSchema+`,"payload":`), "}")
		row = strings.Replace(row, " UTC", "Z", 1)
		if at := strings.Index(row, "2019-10-"); at >= 0 {
			row = row[:at+10] + "T" + row[at+11:]
		}
		if out[i] = envelope(schema, row); full {
			out[i] = envelope(wrap, changed("c", "null", row))
		}
	}
	return out
}
