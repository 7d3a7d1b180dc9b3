// Package features defines each feature of the shop once: its name, its type, the
// Go function that computes it of a validated event, and the SQL expression that
// computes the same of the warehouse's gold tables.
//
// The stream path (functions/featurize), the offline table, the training view and
// serving all take them from here, so that a model is trained on the numbers it
// will be served. A test holds every function to its expression.
//
// A feature is what was known when the event arrived. All but one are said by the
// event itself; activity_count also takes the event's rank, which only the online
// store and the warehouse can give, see Feature.Of.
//
// There is no I/O here.
package features

import (
	"strconv"
	"strings"
)

// Type is the type of a feature's values. Any value may be null.
type Type uint8

// The types.
const (
	Int64 Type = iota + 1
	Float64
	String
)

// String gives the type's name, as Feast writes it.
func (t Type) String() string { return [...]string{"", "INT64", "DOUBLE", "STRING"}[t] }

// Feature is the definition of one feature.
type Feature struct {
	Name string
	Type Type
	// Categorical features are encoded by the encoder of the model's bundle.
	Categorical bool
	// Description is for people.
	Description string
	// Of computes the feature of an event with a rank: its place, from 1 on, among
	// the distinct events of its session in the order of their arrival.
	Of func(e *Event, rank int64) Value
	// SQL is an expression over a row of dwh.fact_events, called f.
	SQL string
}

// The places of the features in All and in a Vector: the order in which a model
// takes them.
const (
	Brand = iota
	Price
	EventWeekday
	CategoryCodeLevel1
	CategoryCodeLevel2
	ActivityCount
	// Count is how many there are.
	Count
)

var all = [Count]Feature{
	Brand: {
		Name: "brand", Type: String, Categorical: true,
		Description: "The product's brand as the event says it.",
		Of:          func(e *Event, _ int64) Value { return text(e.Brand) },
		SQL:         "f.brand::text",
	},
	Price: {
		Name: "price", Type: Float64,
		Description: "The product's price as the event says it.",
		Of:          func(e *Event, _ int64) Value { return OfFloat(e.Price) },
		SQL:         "f.price",
	},
	EventWeekday: {
		Name: "event_weekday", Type: Int64, Categorical: true,
		Description: "The day of the week of the event in UTC, 0 is Sunday.",
		Of:          func(e *Event, _ int64) Value { return OfInt(int64(e.Time.UTC().Weekday())) },
		SQL:         "extract(dow FROM f.event_timestamp)::bigint",
	},
	CategoryCodeLevel1: {
		Name: "category_code_level1", Type: String, Categorical: true,
		Description: "The first part of the dotted category code.",
		Of:          func(e *Event, _ int64) Value { return text(part(e.CategoryCode, 1)) },
		SQL:         "nullif(split_part(f.category_code, '.', 1), '')",
	},
	CategoryCodeLevel2: {
		Name: "category_code_level2", Type: String, Categorical: true,
		Description: "The second part of the dotted category code.",
		Of:          func(e *Event, _ int64) Value { return text(part(e.CategoryCode, 2)) },
		SQL:         "nullif(split_part(f.category_code, '.', 2), '')",
	},
	ActivityCount: {
		Name: "activity_count", Type: Int64,
		Description: "The distinct events of the session that had arrived, this one included.",
		Of:          func(_ *Event, rank int64) Value { return OfInt(rank) },
		SQL:         "f.activity_count::bigint",
	},
}

// All lists the features in the order in which models take them. The list is the
// caller's own.
func All() []Feature { return append([]Feature(nil), all[:]...) }

// ByName finds a feature's place in All.
func ByName(name string) (place int, ok bool) {
	for i := range all {
		if all[i].Name == name {
			return i, true
		}
	}
	return 0, false
}

// Vector is the features of one event, in the order of All.
type Vector [Count]Value

// Of computes all features of an event with a rank, see Feature.Of.
func Of(e *Event, rank int64) Vector {
	var v Vector
	for i := range all {
		v[i] = all[i].Of(e, rank)
	}
	return v
}

// part is split_part of PostgreSQL: the n-th of a text's dotted parts, "" if there
// are fewer.
func part(text string, n int) string {
	for ; n > 1; n-- {
		_, rest, more := strings.Cut(text, ".")
		if !more {
			return ""
		}
		text = rest
	}
	first, _, _ := strings.Cut(text, ".")
	return first
}

// Value is one value of a feature. The zero Value is null.
type Value struct {
	typ Type // 0 is null
	num int64
	f   float64
	str string
}

// OfInt makes an integer.
func OfInt(n int64) Value { return Value{typ: Int64, num: n} }

// OfFloat makes a number, which must be finite.
func OfFloat(f float64) Value { return Value{typ: Float64, f: f} }

// OfString makes a text.
func OfString(s string) Value { return Value{typ: String, str: s} }

// text makes a text, or null of an empty one, which stands for "not known".
func text(s string) Value {
	if s == "" {
		return Value{}
	}
	return OfString(s)
}

// Null tells whether there is no value.
func (v Value) Null() bool { return v.typ == 0 }

// Int is the value of an integer, 0 of anything else.
func (v Value) Int() int64 { return v.num }

// Float is the value of a number or an integer, 0 of anything else.
func (v Value) Float() float64 {
	if v.typ == Int64 {
		return float64(v.num)
	}
	return v.f
}

// Str is the value of a text, "" of anything else.
func (v Value) Str() string { return v.str }

// Any is nil, an int64, a float64 or a string, as database drivers take it.
func (v Value) Any() any {
	switch v.typ {
	case Int64:
		return v.num
	case Float64:
		return v.f
	case String:
		return v.str
	}
	return nil
}

// AppendText appends the value as text, which ParseText reads: nothing for null.
func (v Value) AppendText(dst []byte) []byte {
	switch v.typ {
	case Int64:
		return strconv.AppendInt(dst, v.num, 10)
	case Float64:
		return appendFloat(dst, v.f)
	}
	return append(dst, v.str...)
}

// AppendJSON appends the value as JSON.
func (v Value) AppendJSON(dst []byte) []byte {
	switch v.typ {
	case Int64, Float64:
		return v.AppendText(dst)
	case String:
		return appendString(dst, v.str)
	}
	return append(dst, "null"...)
}
