package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// relation is the table at one moment: its columns, and what every record says of
// them.
type relation struct {
	columns []column
	key     []int // indexes of the key's columns, in the order of the key

	keySchema, valueSchema string
}

type column struct {
	name string
	kind kind
	// omitted columns have a type that records cannot show.
	omitted bool
	member  string // `"name":`
}

// attribute is what the catalog says of a column.
type attribute struct {
	Name      string
	OID       uint32
	Precision int32
	NotNull   bool
	Key       int32 // place in the primary key, or -1
	Labels    []string
}

// attributes reads the table's columns from the catalog. The key is the primary
// key or else, as for Debezium, the first unique index over plain columns.
func attributes(ctx context.Context, db *pgx.Conn, table string) ([]attribute, error) {
	const sql = `
		WITH RECURSIVE base AS (
			SELECT a.attnum, a.attname, a.atttypid AS oid, a.atttypmod AS typmod, a.attnotnull AS not_null, t.typtype, t.typbasetype, t.typtypmod
			FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL -- a domain is shown as what it is made of
			SELECT b.attnum, b.attname, t.oid, b.typtypmod, b.not_null, t.typtype, t.typbasetype, t.typtypmod
			FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
		), key AS (
			SELECT indkey::int2[] AS columns, indnkeyatts FROM pg_index
			WHERE indrelid = $1::regclass AND indisunique AND indpred IS NULL AND indexprs IS NULL
			ORDER BY indisprimary DESC, indexrelid LIMIT 1
		)
		SELECT b.attname, b.oid, b.typmod, b.not_null,
			coalesce((SELECT place FROM key, array_position(columns, b.attnum) AS place WHERE place < indnkeyatts), -1),
			(SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = b.oid)
		FROM base b WHERE b.typtype <> 'd' ORDER BY b.attnum`
	rows, err := db.Query(ctx, sql, table)
	if err != nil {
		return nil, fmt.Errorf("reading the columns of %s: %w", table, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[attribute])
	if err != nil {
		return nil, fmt.Errorf("reading the columns of %s: %w", table, err)
	}
	return list, nil
}

// names are what the schemas are called by.
type names struct {
	prefix, schema, table string
}

func (n names) topic() string { return n.prefix + "." + n.schema + "." + n.table }

// newRelation prepares the records of a table with the given columns.
func newRelation(n names, list []attribute) (*relation, error) {
	r := &relation{columns: make([]column, len(list))}
	fields := make([]string, len(list))
	for i, a := range list {
		k, ok := kindOf(a.OID, a.precision(), a.Labels)
		name := quote(a.Name)
		r.columns[i] = column{name: a.Name, kind: k, omitted: !ok, member: name + ":"}
		if !ok {
			continue
		}
		fields[i] = k.schema(name, !a.NotNull)
		if a.Key >= 0 {
			r.key = append(r.key, i)
		}
	}
	slices.SortFunc(r.key, func(a, b int) int { return int(list[a].Key - list[b].Key) })
	if len(r.key) > 0 {
		key := make([]string, len(r.key))
		for i, c := range r.key {
			key[i] = fields[c]
		}
		r.keySchema = fmt.Sprintf(`{"type":"struct","fields":[%s],"optional":false,"name":%s}`, strings.Join(key, ","), quote(n.topic()+".Key"))
	}
	fields = slices.DeleteFunc(fields, func(f string) bool { return f == "" })
	if len(fields) == 0 {
		return nil, errors.New("the table has no column that a record can show")
	}
	r.valueSchema = envelopeSchema(n, strings.Join(fields, ","))
	return r, nil
}

// unknown lists the columns that records do not show.
func (r *relation) unknown() []string {
	var list []string
	for _, c := range r.columns {
		if c.omitted {
			list = append(list, c.name)
		}
	}
	return list
}

// precision is the digits of the second's fraction that the type's modifier says.
func (a attribute) precision() int32 {
	switch a.OID {
	case oidTime, oidTimestamp, oidTimestamptz:
		return a.Precision
	}
	return -1
}

// streamed are the columns of a relation message, with what only the catalog
// knows. The catalog may be newer than the message: a column that is no longer
// there is taken for one that may be null.
func streamed(m *pglogrepl.RelationMessage, catalog []attribute) []attribute {
	list := make([]attribute, len(m.Columns))
	for i, c := range m.Columns {
		list[i] = attribute{Name: c.Name, OID: c.DataType, Precision: c.TypeModifier, Key: -1}
		for _, a := range catalog {
			if a.Name == c.Name {
				list[i] = a
			}
		}
	}
	return list
}

// schema is the schema of a field.
func (k kind) schema(name string, optional bool) string {
	s := fmt.Sprintf(`{"type":%q,"optional":%t`, k.connect, optional)
	if k.logical != "" {
		s += fmt.Sprintf(`,"name":%q,"version":1`, k.logical)
	}
	if k.params != "" {
		s += `,"parameters":{` + k.params + `}`
	}
	return s + `,"field":` + name + `}`
}

func quote(s string) string {
	b, _ := appendText(nil, s) // of text it always can
	return string(b)
}

// debeziumVersion is the connector whose records these are like; it is the one that
// infra/debezium pins.
const debeziumVersion = "3.4.1.Final"

func envelopeSchema(n names, fields string) string {
	row := func(member string) string {
		return fmt.Sprintf(`{"type":"struct","fields":[%s],"optional":true,"name":%s,"field":%q}`, fields, quote(n.topic()+".Value"), member)
	}
	return `{"type":"struct","fields":[` + row("before") + `,` + row("after") + `,` + sourceSchema + `,` + transactionSchema +
		`,{"type":"string","optional":false,"field":"op"},{"type":"int64","optional":true,"field":"ts_ms"},{"type":"int64","optional":true,"field":"ts_us"},` +
		`{"type":"int64","optional":true,"field":"ts_ns"}],"optional":false,"name":` + quote(n.topic()+".Envelope") + `,"version":2}`
}

const (
	sourceSchema = `{"type":"struct","fields":[{"type":"string","optional":false,"field":"version"},{"type":"string","optional":false,"field":"connector"},` +
		`{"type":"string","optional":false,"field":"name"},{"type":"int64","optional":false,"field":"ts_ms"},` +
		`{"type":"string","optional":true,"name":"io.debezium.data.Enum","version":1,"parameters":{"allowed":"true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},"default":"false","field":"snapshot"},` +
		`{"type":"string","optional":false,"field":"db"},{"type":"string","optional":true,"field":"sequence"},{"type":"int64","optional":true,"field":"ts_us"},` +
		`{"type":"int64","optional":true,"field":"ts_ns"},{"type":"string","optional":false,"field":"schema"},{"type":"string","optional":false,"field":"table"},` +
		`{"type":"int64","optional":true,"field":"txId"},{"type":"int64","optional":true,"field":"lsn"},{"type":"int64","optional":true,"field":"xmin"}],` +
		`"optional":false,"name":"io.debezium.connector.postgresql.Source","version":1,"field":"source"}`
	transactionSchema = `{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"},{"type":"int64","optional":false,"field":"total_order"},` +
		`{"type":"int64","optional":false,"field":"data_collection_order"}],"optional":true,"name":"event.block","version":1,"field":"transaction"}`
)
