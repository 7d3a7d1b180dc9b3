package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
)

// The schema that rides in a message is never what a record is checked against;
// it has to say the same as the contract, that is all. Since a producer sends the
// same bytes with every message, the comparison is made once for the bytes.

// schema is what is known of the bytes of one embedded schema.
type schema struct {
	text  []byte
	lines bool
	// change says that it describes a change envelope; row is then the schema of
	// the row, a part of text.
	change bool
	row    []byte
	// By contract of the stream: why it disagrees, "" if it does not, and in which
	// unit each field's integer timestamps are.
	disagreement []string
	formats      [][]formatSet
}

const (
	maxSchemas    = 16
	maxSchemaSize = 128 << 10
)

// schemaCache keeps the schemas seen last, at most maxSchemas of maxSchemaSize, so
// that records with ever new schemas cost time but no memory.
type schemaCache struct {
	known atomic.Pointer[[]*schema]
	mu    sync.Mutex // for adding
}

// find returns the schema that text starts with, nil if it is not known. What
// starts with a whole object's bytes has that object there.
func (c *schemaCache) find(text []byte) *schema {
	if known := c.known.Load(); known != nil {
		for _, s := range *known {
			if bytes.HasPrefix(text, s.text) {
				return s
			}
		}
	}
	return nil
}

func (c *schemaCache) add(s *schema) {
	if len(s.text) > maxSchemaSize {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var known []*schema
	if old := c.known.Load(); old != nil {
		known = *old
		known = known[max(0, len(known)-maxSchemas+1):]
	}
	known = append(known[:len(known):len(known)], s)
	c.known.Store(&known)
}

// schemaNode is a schema or a field of one, in Connect's spelling or in Avro's.
type schemaNode struct {
	Field  string          `json:"field"`
	Name   string          `json:"name"`
	Type   json.RawMessage `json:"type"`
	Fields json.RawMessage `json:"fields"`
}

func (n *schemaNode) fieldName() string {
	if n.Field != "" {
		return n.Field
	}
	return n.Name
}

func (n *schemaNode) fields() (list []schemaNode, ok bool) {
	return list, len(n.Fields) > 0 && n.Fields[0] == '[' && json.Unmarshal(n.Fields, &list) == nil
}

// newSchema compares an embedded schema, an object that was scanned without
// failure, with the contracts of the stream.
func newSchema(text []byte, contracts []*Contract) *schema {
	s := &schema{text: bytes.Clone(text)}
	s.lines = bytes.ContainsAny(text, "\n\r")
	s.disagreement = make([]string, len(contracts))
	s.formats = make([][]formatSet, len(contracts))
	var root schemaNode
	var fields []schemaNode
	ok := json.Unmarshal(s.text, &root) == nil
	if ok {
		fields, ok = root.fields()
	}
	if ok && contracts[0].Kind == Debezium {
		if i := changedRow(fields); i >= 0 {
			var raw []json.RawMessage
			_ = json.Unmarshal(root.Fields, &raw) // it was read as a list above
			s.change, s.row = true, raw[i]
			fields, ok = fields[i].fields()
		}
	}
	for i, c := range contracts {
		reason := "it has no list of fields"
		if ok {
			s.formats[i] = make([]formatSet, len(c.Fields))
			reason = c.compare(fields, s.formats[i])
		}
		if reason != "" {
			s.disagreement[i] = "Schema disagrees with contract " + c.Name + ": " + reason
		}
	}
	return s
}

// changedRow returns which of the fields describes the row, if they are those of a
// change envelope, and -1 if they are not.
func changedRow(fields []schemaNode) int {
	op, after := false, -1
	for i := range fields {
		switch fields[i].fieldName() {
		case "op":
			op = true
		case "after":
			after = i
		}
	}
	if !op {
		return -1
	}
	return after
}

// compare says where the fields of a schema disagree with the contract, "" if
// nowhere. Their order and fields that the contract does not know do not matter,
// and neither does what may be null: that is checked on the values. formats becomes
// the formats that the schema leaves to each timestamp.
func (c *Contract) compare(fields []schemaNode, formats []formatSet) string {
	seen := make([]bool, len(c.Fields))
	for i := range fields {
		n := &fields[i]
		name := n.fieldName()
		at, known := c.index[name]
		if !known {
			continue
		}
		f := &c.Fields[at]
		if seen[at] {
			return fmt.Sprintf("field %s is listed twice", name)
		}
		seen[at] = true
		formats[at] = f.formats
		logical := n.Name
		if n.Field == "" {
			logical = ""
		}
		types := wireTypes(n.Type, logical, 0)
		if len(types) == 0 {
			return fmt.Sprintf("field %s has no type", name)
		}
		for _, t := range types {
			fits, left := f.agrees(t)
			if !fits {
				return fmt.Sprintf("field %s is %s, should be %s", name, t, f.Type)
			}
			formats[at] &= left
		}
	}
	for i, ok := range seen {
		if !ok && !c.Fields[i].Optional {
			return fmt.Sprintf("field %s is missing", c.Fields[i].Name)
		}
	}
	return ""
}

// wireType is a type as a schema writes it, with its logical name if it has one.
type wireType struct{ base, logical string }

func (t wireType) String() string {
	if t.logical != "" {
		return t.base + " (" + t.logical + ")"
	}
	return t.base
}

// wireTypes lists the types of a field: one, or the members of a union but null. A
// union of records of unions is as deep as it gets; each level reads its text again.
func wireTypes(raw json.RawMessage, logical string, depth int) []wireType {
	if len(raw) == 0 || depth > 4 {
		return nil
	}
	switch raw[0] {
	case '"':
		var base string
		if json.Unmarshal(raw, &base) == nil && base != "null" {
			return []wireType{{base, logical}}
		}
	case '{':
		var nested struct {
			Type    json.RawMessage `json:"type"`
			Logical string          `json:"logicalType"`
			Connect string          `json:"connect.name"`
		}
		if json.Unmarshal(raw, &nested) == nil {
			for _, name := range []string{nested.Logical, nested.Connect} {
				if name != "" {
					logical = name
				}
			}
			return wireTypes(nested.Type, logical, depth+1)
		}
	case '[':
		var members []json.RawMessage
		var types []wireType
		if json.Unmarshal(raw, &members) == nil {
			for _, m := range members {
				types = append(types, wireTypes(m, logical, depth+1)...)
			}
		}
		return types
	}
	return nil
}

// agrees says whether values of a wire type can be values of the field, and for a
// timestamp in which formats.
func (f *Field) agrees(t wireType) (fits bool, formats formatSet) {
	integer := t.base == "int64" || t.base == "long" || t.base == "int32" || t.base == "int" || t.base == "int16" || t.base == "int8"
	switch f.Type {
	case String:
		return t.base == "string" || t.base == "enum", 0
	case Int64:
		return integer, 0
	case Double:
		return t.base == "double" || t.base == "float", 0
	case Boolean:
		return t.base == "boolean", 0
	}
	switch {
	case t.base == "string" && t.logical == "io.debezium.time.ZonedTimestamp":
		formats = asZoned
	case t.base == "string":
		formats = asText
	case !integer:
	case t.logical == "io.debezium.time.MicroTimestamp" || t.logical == "timestamp-micros":
		formats = asMicros
	case t.logical == "io.debezium.time.Timestamp" || t.logical == "org.apache.kafka.connect.data.Timestamp" || t.logical == "timestamp-millis":
		formats = asMillis
	case t.logical == "":
		formats = asInteger
	}
	formats &= f.formats
	return formats != 0, formats
}

// readSchema reads the schema of an envelope, by its bytes if they are known.
func (st *state) readSchema() jsonscan.Value {
	if st.scan.Next() != '{' {
		return st.scan.Value()
	}
	start := st.scan.Pos()
	if known := st.stream.schemas.find(st.text[start:]); known != nil {
		st.scan.Advance(len(known.text))
		st.schema = known
		return jsonscan.Value{Start: start, End: start + len(known.text), Kind: jsonscan.Object}
	}
	v := st.scan.Value()
	if v.Kind == jsonscan.Object {
		st.schema = newSchema(st.text[v.Start:v.End], st.stream.contracts)
		st.stream.schemas.add(st.schema)
	}
	return v
}
