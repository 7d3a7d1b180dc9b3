package shape

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

// Names and versions as the reference's connector writes them.
const (
	serverName      = "tracking_postgres_cdc"
	tableName       = serverName + ".public.events"
	debeziumVersion = "1.9.7.Final"
)

// schemaMember is the beginning of a message up to its payload, with the given
// type for the price.
func schemaMember(format Format, text TimeText, priceType string) string {
	var schema string
	switch format {
	case Row:
		return ""
	case Connect:
		schema = avroSchema(priceType)
	case CDCFlat:
		schema = rowSchema(text, priceType, "", false)
	case CDCFull:
		schema = envelopeSchema(text, priceType)
	}
	return `{"schema":` + schema + `,"payload":`
}

// avroSchema is the producer's schema: the field list of its Avro record, verbatim.
func avroSchema(priceType string) string {
	types := [fieldCount]string{
		eventTime: `"string"`, eventType: `"string"`, productID: `"long"`, categoryID: `"long"`,
		categoryCode: `["null","string"],"default":null`, brand: `["null","string"],"default":null`,
		price: strconv.Quote(priceType), userID: `"long"`, userSession: `"string"`,
	}
	fields := make([]string, fieldCount)
	for i, name := range fieldNames {
		fields[i] = fmt.Sprintf(`{"name":"%s","type":%s}`, name, types[i])
	}
	return `{"type":"struct","fields":[` + strings.Join(fields, ",") + `]}`
}

// rowSchema is the Connect schema of a row of public.events. With field it is the
// schema of a member of that name.
func rowSchema(text TimeText, priceType, field string, optional bool) string {
	types := [fieldCount]string{
		eventType: "string", productID: "int64", categoryID: "int64", categoryCode: "string",
		brand: "string", price: priceType, userID: "int64", userSession: "string",
	}
	fields := make([]string, fieldCount)
	fields[eventTime] = timeSchema(text)
	for i := eventTime + 1; i < fieldCount; i++ {
		fields[i] = fmt.Sprintf(`{"type":"%s","optional":true,"field":"%s"}`, types[i], fieldNames[i])
	}
	member := ""
	if field != "" {
		member = fmt.Sprintf(`,"field":"%s"`, field)
	}
	return fmt.Sprintf(`{"type":"struct","fields":[%s],"optional":%t,"name":"%s.Value"%s}`,
		strings.Join(fields, ","), optional, tableName, member)
}

// timeSchema is the schema of the primary key column event_time.
func timeSchema(text TimeText) string {
	t := timeTexts[text]
	return fmt.Sprintf(`{"type":"%s","optional":false,"name":"%s","version":1,"field":"event_time"}`, t.connect, t.logical)
}

// envelopeSchema is the schema of Debezium's change envelope for PostgreSQL.
func envelopeSchema(text TimeText, priceType string) string {
	member := func(typ string, optional bool, field string) string {
		return fmt.Sprintf(`{"type":"%s","optional":%t,"field":"%s"}`, typ, optional, field)
	}
	source := `{"type":"struct","fields":[` + strings.Join([]string{
		member("string", false, "version"), member("string", false, "connector"), member("string", false, "name"),
		member("int64", false, "ts_ms"),
		`{"type":"string","optional":true,"name":"io.debezium.data.Enum","version":1,"parameters":{"allowed":"true,last,false,incremental"},"default":"false","field":"snapshot"}`,
		member("string", false, "db"), member("string", true, "sequence"), member("string", false, "schema"),
		member("string", false, "table"), member("int64", true, "txId"), member("int64", true, "lsn"), member("int64", true, "xmin"),
	}, ",") + `],"optional":false,"name":"io.debezium.connector.postgresql.Source","field":"source"}`
	transaction := `{"type":"struct","fields":[` + strings.Join([]string{
		member("string", false, "id"), member("int64", false, "total_order"), member("int64", false, "data_collection_order"),
	}, ",") + `],"optional":true,"field":"transaction"}`
	return `{"type":"struct","fields":[` + strings.Join([]string{
		rowSchema(text, priceType, "before", true), rowSchema(text, priceType, "after", true), source,
		member("string", false, "op"), member("int64", true, "ts_ms"), transaction,
	}, ",") + `],"optional":false,"name":"` + tableName + `.Envelope"}`
}

// appendEnvelope writes the change envelope and closes the message.
func (e *Encoder) appendEnvelope(dst []byte, c *Change) []byte {
	dst = append(dst, `{"before":`...)
	dst = e.appendRowOrNull(dst, c.Before)
	dst = append(dst, `,"after":`...)
	dst = e.appendRowOrNull(dst, c.After)
	return appendEnvelopeEnd(dst, c)
}

func (e *Encoder) appendRowOrNull(dst []byte, ev *shop.Event) []byte {
	if ev == nil {
		return append(dst, "null"...)
	}
	return e.appendRow(dst, ev)
}

// appendEnvelopeEnd writes what follows before and after. Times are those of the
// event, not of the clock on the wall: the same stream gives the same bytes.
func appendEnvelopeEnd(dst []byte, c *Change) []byte {
	const (
		firstLSN   = 24_023_128
		bytesAPart = 312 // of the log, a change
		firstTxID  = 556
		decodeMs   = 250 // from the commit to the message
	)
	lsn := firstLSN + c.Position*bytesAPart
	ms := c.Row().Time * 1000
	dst = append(dst, `,"source":{"version":"`+debeziumVersion+`","connector":"postgresql","name":"`+serverName+`","ts_ms":`...)
	dst = strconv.AppendInt(dst, ms, 10)
	dst = append(dst, `,"snapshot":"false","db":"cdc","sequence":"[\"`...)
	dst = strconv.AppendUint(dst, lsn-bytesAPart, 10)
	dst = append(dst, `\",\"`...)
	dst = strconv.AppendUint(dst, lsn, 10)
	dst = append(dst, `\"]","schema":"public","table":"events","txId":`...)
	dst = strconv.AppendUint(dst, firstTxID+c.Position, 10)
	dst = append(dst, `,"lsn":`...)
	dst = strconv.AppendUint(dst, lsn, 10)
	dst = append(dst, `,"xmin":null},"op":"`...)
	dst = append(dst, c.Op)
	dst = append(dst, `","ts_ms":`...)
	dst = strconv.AppendInt(dst, ms+decodeMs, 10)
	return append(dst, `,"transaction":null}}`...)
}

// AppendRowKey writes the key that Debezium gives a row of public.events whose
// primary key is event_time.
func (e *Encoder) AppendRowKey(dst []byte, c *Change) []byte {
	dst = append(dst, `{"schema":{"type":"struct","fields":[`...)
	dst = append(dst, timeSchema(e.text)...)
	dst = append(dst, `],"optional":false,"name":"`+tableName+`.Key"},"payload":{"event_time":`...)
	dst = append(dst, e.timeText(c.Row().Time)...)
	return append(dst, '}', '}')
}
