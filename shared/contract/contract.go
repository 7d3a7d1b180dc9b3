// Package contract holds the stream contracts: what the records of a stream look
// like, said once, in a YAML file, for everything that reads them.
//
// A Contract names the topics and event types it describes, the shape of the
// records (Connect envelope, Debezium, plain JSON), the entity key, the event time
// and the fields with their rules. It is compiled into a validator, whose Check
// gives every record one Verdict, and whatever the record holds, never an error:
// a verdict says what is wrong, and carries the record on in an envelope.
//
// The contracts that ship are embedded; a folder can replace them and add others.
// See the README beside this file for the format and for what becomes of odd input.
//
// The package does no I/O but reading contract files. It knows neither Kafka nor
// HTTP, and does not know what features, tables or alerts are made of a record.
package contract

import (
	"maps"
	"regexp"
	"slices"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
)

// Kind is the shape in which the records of a stream come.
type Kind string

// The kinds.
const (
	// Connect is an object with the keys schema and payload. A record that came by
	// event type rather than by topic, that is over HTTP, may leave the envelope out.
	Connect Kind = "connect"
	// Debezium is a change record: the row itself (unwrapped) or the envelope with
	// before, after, source and op, each with or without schema and payload around.
	Debezium Kind = "debezium"
	// JSON is the plain object.
	JSON Kind = "json"
)

// Type is the type of a field.
type Type string

// The field types. A double takes integers too; an int64 takes neither fractions
// nor exponents; a boolean is nothing but true and false.
const (
	String    Type = "string"
	Int64     Type = "int64"
	Double    Type = "double"
	Boolean   Type = "boolean"
	Timestamp Type = "timestamp"
)

// Contract describes one stream. It does not change after loading and is safe for
// concurrent use.
type Contract struct {
	// Name is also the name of the file, without its ending.
	Name        string `yaml:"name"`
	Description string `yaml:"description"`
	Kind        Kind   `yaml:"kind"`
	// Topics are the Kafka topics whose records this is about, Types the types of
	// the CloudEvents that carry such a record over HTTP.
	Topics []string `yaml:"topics"`
	Types  []string `yaml:"types"`
	// Discriminator is the field that tells contracts of the same topic or type
	// apart: a string field whose enum has one value.
	Discriminator string   `yaml:"discriminator"`
	Verdicts      Verdicts `yaml:"verdicts"`
	// Key is the entity's field; its value is the partition key of all that follows.
	Key string `yaml:"key"`
	// Entity is the field of whom the metrics are; the key, if the file does not say.
	// It differs where several entities share a key, and so their order.
	Entity string `yaml:"entity"`
	// EventTime is the timestamp field that says when it happened.
	EventTime string `yaml:"eventTime"`
	// NaturalKey are the fields that make a record the same record when it comes again.
	NaturalKey []string `yaml:"naturalKey"`
	// Table is where the valid records are stored, in schema public; empty is nowhere.
	// Its columns are the fields, but for the discriminator, and created_at.
	Table string `yaml:"table"`
	// Detect says how anomalies are looked for; nil takes the defaults.
	Detect *Detect `yaml:"detect"`
	Fields []Field `yaml:"fields"`

	file      string // for messages
	index     map[string]int
	members   []string // the fields' names as they stand before a value: "name":
	key       int
	eventTime int
	solo      *Stream
}

// Verdicts are the CloudEvents types of the two verdicts.
type Verdicts struct {
	Valid   string `yaml:"valid"`
	Invalid string `yaml:"invalid"`
}

// Field describes one field of a record. Fields are checked in the contract's
// order, and the first failure is the verdict's.
type Field struct {
	Name string `yaml:"name"`
	Type Type   `yaml:"type"`
	// Formats are the ways in which a timestamp may be written.
	Formats []Format `yaml:"formats"`
	// Optional lets the key be absent, Nullable lets the value be null.
	Optional bool `yaml:"optional"`
	Nullable bool `yaml:"nullable"`
	// AcceptQuoted takes an int64 written as a string and makes it a number, for
	// ids that JavaScript cannot hold.
	AcceptQuoted bool `yaml:"acceptQuoted"`
	// Metric marks a number that is worth detecting anomalies and drift in.
	Metric bool `yaml:"metric"`

	// For strings. Lengths count characters, 0 is no limit.
	Enum      []string `yaml:"enum"`
	MinLength int      `yaml:"minLength"`
	MaxLength int      `yaml:"maxLength"`
	Pattern   string   `yaml:"pattern"`
	// For int64 and double.
	Min          *float64 `yaml:"min"`
	Max          *float64 `yaml:"max"`
	ExclusiveMin *float64 `yaml:"exclusiveMin"`

	pattern *regexp.Regexp
	formats formatSet
	says    texts
}

// texts are the verdict texts of a field, made once.
type texts struct{ required, invalidType, enum, length, pattern, limits string }

// DataSchema is the URI that the verdicts of a contract carry as dataschema, and by
// which an event can name the contract it was made for.
func (c *Contract) DataSchema() string { return SchemaPrefix + c.Name }

// File says where the contract was read from.
func (c *Contract) File() string { return c.file }

// SchemaPrefix is what the URI of every contract starts with.
const SchemaPrefix = "urn:millrace:contract:"

// Field returns the field of that name, nil if there is none.
func (c *Contract) Field(name string) *Field {
	if i, ok := c.index[name]; ok {
		return &c.Fields[i]
	}
	return nil
}

// Metrics returns the fields that are metrics, in the contract's order.
func (c *Contract) Metrics() []*Field {
	var metrics []*Field
	for i := range c.Fields {
		if c.Fields[i].Metric {
			metrics = append(metrics, &c.Fields[i])
		}
	}
	return metrics
}

// Stream is all that comes by one topic or event type: one contract, or several
// with a discriminator. It is safe for concurrent use.
type Stream struct {
	contracts []*Contract
	// bare lets a Connect record come without its envelope.
	bare bool
	// oneOf is the text for a discriminator that no contract has.
	oneOf   string
	alone   []*Stream // by contract, if there are several
	schemas schemaCache
}

// Of returns the part of the stream that is of one contract.
func (s *Stream) Of(name string) (*Stream, bool) {
	i := slices.IndexFunc(s.contracts, func(c *Contract) bool { return c.Name == name })
	switch {
	case i < 0:
		return nil, false
	case len(s.contracts) == 1:
		return s, true
	}
	return s.alone[i], true
}

// Contracts returns the contracts of the stream, by name.
func (s *Stream) Contracts() []*Contract { return slices.Clone(s.contracts) }

// Set is all contracts that are known. It does not change after loading.
type Set struct {
	contracts []*Contract
	topics    map[string]*Stream
	types     map[string]*Stream
}

// Contracts returns all contracts, by name.
func (s *Set) Contracts() []*Contract { return slices.Clone(s.contracts) }

// Contract returns the contract of that name.
func (s *Set) Contract(name string) (*Contract, bool) {
	i := slices.IndexFunc(s.contracts, func(c *Contract) bool { return c.Name == name })
	if i < 0 {
		return nil, false
	}
	return s.contracts[i], true
}

// ByTopic returns the stream of a Kafka topic.
func (s *Set) ByTopic(topic string) (*Stream, bool) {
	stream, ok := s.topics[topic]
	return stream, ok
}

// ByType returns the stream of a CloudEvents type.
func (s *Set) ByType(typ string) (*Stream, bool) {
	stream, ok := s.types[typ]
	return stream, ok
}

// Topics returns the topics that have a contract, sorted.
func (s *Set) Topics() []string { return slices.Sorted(maps.Keys(s.topics)) }

// Types returns the event types that have a contract, sorted.
func (s *Set) Types() []string { return slices.Sorted(maps.Keys(s.types)) }

func (c *Contract) discriminates(text []byte, v jsonscan.Value) bool {
	field := &c.Fields[c.index[c.Discriminator]]
	return v.Kind == jsonscan.String && string(jsonscan.Unquote(text, v)) == field.Enum[0]
}
