package shape

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Kind is a way in which a message is bad. Good is none of them.
type Kind uint8

const (
	// Good marks a message that a validator has to accept.
	Good Kind = iota
	// NegativePrice is a kind that recorded streams have, too.
	NegativePrice
	// ZeroPrice is another.
	ZeroPrice
)

// draft is a message that is being spoilt.
type draft struct {
	fields   [fieldCount][]byte // JSON text; nil leaves the field out
	more     string             // further members of the row
	disagree bool               // the schema claims another type for the price
	noRow    bool               // no payload at all
	body     func([]byte, *rand.PCG) []byte
}

// kinds are the bad kinds; the first is the one that the reference's producer
// injects. Each must be refused by the contract of the format, whichever it is.
var kinds = [...]struct {
	name, about string
	spoil       func(*draft, *rand.PCG)
}{
	{"price_negative", "price is -100, the reference producer's only kind", set(price, "-100")},
	{"price_zero", "price is 0", set(price, "0")},
	{"missing_field", "a required field is absent", func(d *draft, r *rand.PCG) { d.fields[required(r)] = nil }},
	{"null_field", "a required field is null", func(d *draft, r *rand.PCG) { d.fields[required(r)] = []byte("null") }},
	{"wrong_type", "price is a text", set(price, `"cheap"`)},
	{"number_for_text", "event_type is a number", set(eventType, "3")},
	{"boolean_for_integer", "product_id is true", set(productID, "true")},
	{"fraction_for_integer", "user_id is a fraction", set(userID, "512900744.5")},
	{"integer_overflow", "category_id does not fit 64 bits", set(categoryID, "20530135589202171910000")},
	{"unknown_type", "event_type is none of the four", set(eventType, `"wishlist"`)},
	{"bad_time", "event_time is a text that is no time", set(eventTime, `"2019-13-41 25:61:00 UTC"`)},
	{"nan_price", "price is NaN, which is not JSON", set(price, "NaN")},
	{"infinite_price", "price is 1e999, which no number holds", set(price, "1e999")},
	{"bad_utf8", "brand holds bytes that are not UTF-8", set(brand, "\"caf\xe9\xff\"")},
	{"duplicate_key", "price is there twice", func(d *draft, _ *rand.PCG) { d.more = `,"price":1` }},
	{"schema_disagrees", "the message's own schema gives price another type", func(d *draft, _ *rand.PCG) { d.disagree = true }},
	{"missing_payload", "there is a schema but no payload", func(d *draft, _ *rand.PCG) { d.noRow = true }},
	{"malformed_json", "the message is cut off", func(d *draft, _ *rand.PCG) { d.body = cut }},
	{"not_json", "the message is a line of text", func(d *draft, _ *rand.PCG) {
		d.body = func([]byte, *rand.PCG) []byte {
			return []byte("upstream connect error or disconnect/reset before headers")
		}
	}},
	{"empty_body", "the message has no bytes (not in CDC formats)", func(d *draft, _ *rand.PCG) {
		d.body = func([]byte, *rand.PCG) []byte { return nil }
	}},
}

// Kinds counts the bad kinds; they are 1 to Kinds.
const Kinds = len(kinds)

// emptyBody is the last kind; in a topic of changes it means something else.
const emptyBody = Kind(Kinds)

// fits tells whether messages of the kind exist in the format and are bad there: the
// columns of a table hold what has their type.
func (k Kind) fits(format Format) bool {
	switch format {
	case Connect:
		return true
	case Row:
		return k == NegativePrice || k == ZeroPrice || kinds[k-1].name == "unknown_type"
	}
	return k != emptyBody
}

func (k Kind) String() string {
	if k == Good {
		return "good"
	}
	return kinds[k-1].name
}

// About says in a line what is wrong with messages of the kind.
func (k Kind) About() string { return kinds[k-1].about }

// ParseKinds reads a comma-separated list of kinds that are bad in the format;
// "all" is every one.
func ParseKinds(list string, format Format) ([]Kind, error) {
	var found []Kind
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		before := len(found)
		for k := Kind(1); int(k) <= Kinds; k++ {
			if (name == "all" || name == k.String()) && k.fits(format) {
				found = append(found, k)
			}
			switch {
			case name != k.String() || k.fits(format):
			case format == Row:
				return nil, fmt.Errorf("bad kind %s does not fit into the columns of a table", name)
			default:
				return nil, fmt.Errorf("bad kind %s is a tombstone in format %s, which is not bad", name, format)
			}
		}
		if len(found) == before {
			return nil, fmt.Errorf("bad kind %q is not known", name)
		}
	}
	return found, nil
}

func set(field int, text string) func(*draft, *rand.PCG) {
	return func(d *draft, _ *rand.PCG) { d.fields[field] = []byte(text) }
}

// required draws one of the fields that no contract lets be null.
func required(r *rand.PCG) int {
	fields := [...]int{eventTime, eventType, productID, categoryID, price, userID, userSession}
	return fields[r.Uint64()%uint64(len(fields))]
}

// cut keeps between a third and all but the last byte of the message, so that
// what is left never is a whole one.
func cut(b []byte, r *rand.PCG) []byte {
	third := len(b) / 3
	return b[:third+int(r.Uint64()%uint64(len(b)-third))]
}

// AppendBad writes a message of a bad kind and returns the extended buffer. What
// the kind leaves open is drawn from r.
func (e *Encoder) AppendBad(dst []byte, c *Change, k Kind, r *rand.PCG) []byte {
	d := e.draft(c)
	kinds[k-1].spoil(d, r)

	from := len(dst)
	schema := e.good
	if d.disagree {
		schema = e.disagreeing
	}
	if d.noRow {
		dst = append(dst, schema[:len(schema)-len(`,"payload":`)]...)
		dst = append(dst, '}')
	} else {
		dst = append(dst, schema...)
		switch e.format {
		case CDCFull:
			dst = append(dst, `{"before":null,"after":`...)
			dst = d.appendRow(dst)
			// The spoilt row is an insert, whatever the change was.
			dst = appendEnvelopeEnd(dst, &Change{Op: 'c', After: c.Row(), Position: c.Position})
		case Row:
			dst = append(d.appendRow(append(dst, `{"op":"c","before":null,"after":`...)), '}')
		default:
			dst = append(d.appendRow(dst), '}')
		}
	}
	if d.body != nil {
		dst = append(dst[:from], d.body(dst[from:], r)...)
	}
	return dst
}

// draft takes a good row apart.
func (e *Encoder) draft(c *Change) *draft {
	ev := c.Row()
	d := &draft{}
	product := make([]byte, 0, 256)
	// The product's members come as one text; they are told apart by their names
	// with the quotes, which no JSON string can contain.
	product = e.appendProduct(product, ev.Product)
	rest := string(product)
	for i := productID; i <= price; i++ {
		rest = rest[len(fieldNames[i])+len(`"":`):]
		value := rest
		if i < price {
			at := strings.Index(rest, `,"`+fieldNames[i+1]+`":`) //nolint:gocritic // wrapperFunc: strings.Cut would take the name away
			value, rest = rest[:at], rest[at+1:]
		}
		d.fields[i] = []byte(value)
	}
	d.fields[eventTime] = append([]byte(nil), e.timeText(ev.Time)...)
	d.fields[eventType] = appendString(nil, ev.Type.String())
	d.fields[userID] = fmt.Appendf(nil, "%d", ev.User)
	d.fields[userSession] = appendString(nil, ev.Session)
	return d
}

func (d *draft) appendRow(dst []byte) []byte {
	dst = append(dst, '{')
	first := true
	for i, value := range d.fields {
		if value == nil {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, '"')
		dst = append(dst, fieldNames[i]...)
		dst = append(dst, '"', ':')
		dst = append(dst, value...)
	}
	dst = append(dst, d.more...)
	return append(dst, '}')
}
