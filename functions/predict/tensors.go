package main

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
)

// Requests and answers of the Open Inference Protocol are read and written by hand
// where they look as they nearly always do: encoding/json reads a body three times and
// took longer than the trees. Whatever looks otherwise, wrong requests above all, goes
// the usual way; a fuzz test holds the two to each other.

// quickRequest reads a request of numeric tensors. ok is false if it is anything else;
// then nothing is said about what is wrong with it, if anything is.
func quickRequest(body []byte) (q v2Request, ok bool) {
	r := reader{b: body}
	ok = r.object(func(key string) bool {
		switch {
		case key == "id" && q.ID == "":
			q.ID, ok = r.text()
			return ok && q.ID != ""
		case key == "inputs" && q.Inputs == nil:
			return r.array(func() bool {
				q.Inputs = append(q.Inputs, v2Tensor{})
				return r.tensor(&q.Inputs[len(q.Inputs)-1])
			})
		}
		return false
	})
	r.space()
	return q, ok && r.at == len(body)
}

func (r *reader) tensor(t *v2Tensor) bool {
	return r.object(func(key string) (ok bool) {
		switch {
		case key == "name" && t.Name == "":
			t.Name, ok = r.text()
			return ok && t.Name != ""
		case key == "datatype" && t.Datatype == "":
			t.Datatype, ok = r.text()
			return ok && t.Datatype != ""
		case key == "shape" && t.Shape == nil:
			return r.array(func() bool {
				r.space()
				from := r.at
				n, ok := r.number()
				t.Shape = append(t.Shape, int64(n))
				return ok && math.Abs(n) < 1<<53 && !bytes.ContainsAny(r.b[from:r.at], ".eE")
			})
		case key == "data" && t.Data == nil:
			from := r.at
			// A digit and a comma are the least that an element takes.
			t.numbers = make([]float64, 0, min((len(r.b)-from)/2, 1<<16))
			ok = r.numbers(&t.numbers)
			t.Data = r.b[from:r.at]
			return ok
		}
		return false
	})
}

// numbers reads an array of numbers and nulls, or of arrays of them.
func (r *reader) numbers(to *[]float64) bool {
	return r.array(func() bool {
		switch r.peek() {
		case '[':
			return r.array(func() bool { return r.numberOrNull(to) })
		default:
			return r.numberOrNull(to)
		}
	})
}

func (r *reader) numberOrNull(to *[]float64) bool {
	if r.peek() == 'n' {
		if len(r.b)-r.at < 4 || string(r.b[r.at:r.at+4]) != "null" {
			return false
		}
		r.at += 4
		*to = append(*to, math.NaN())
		return true
	}
	v, ok := r.number()
	*to = append(*to, v)
	return ok
}

// reader reads JSON of the plain kind. Its methods stand before what they read, past
// white space, and end behind it; false says that it is something else.
type reader struct {
	b  []byte
	at int
}

func (r *reader) space() {
	for r.at < len(r.b) {
		switch r.b[r.at] {
		case ' ', '\n', '\t', '\r':
			r.at++
		default:
			return
		}
	}
}

// peek skips white space and gives what follows, 0 at the end.
func (r *reader) peek() byte {
	r.space()
	if r.at == len(r.b) {
		return 0
	}
	return r.b[r.at]
}

func (r *reader) take(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.at++
	return true
}

// object reads an object, each member's value by read.
func (r *reader) object(read func(key string) bool) bool {
	if !r.take('{') {
		return false
	}
	if r.take('}') {
		return true
	}
	for {
		key, ok := r.text()
		if !ok || !r.take(':') {
			return false
		}
		r.space()
		if !read(key) {
			return false
		}
		if !r.take(',') {
			return r.take('}')
		}
	}
}

// array reads an array that is not empty, each element by read.
func (r *reader) array(read func() bool) bool {
	if !r.take('[') {
		return false
	}
	for {
		if !read() {
			return false
		}
		if !r.take(',') {
			return r.take(']')
		}
	}
}

// text reads a string of printable ASCII without escapes.
func (r *reader) text() (string, bool) {
	if !r.take('"') {
		return "", false
	}
	from := r.at
	for ; r.at < len(r.b); r.at++ {
		switch c := r.b[r.at]; {
		case c == '"':
			r.at++
			return string(r.b[from : r.at-1]), true
		case c == '\\' || c < ' ' || c > '~':
			return "", false
		}
	}
	return "", false
}

// powers are those of ten that are exact.
var powers = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// number reads a number to the nearest float64.
func (r *reader) number() (float64, bool) {
	r.space()
	b, from := r.b, r.at
	i := from
	if i < len(b) && b[i] == '-' {
		i++
	}
	first := i
	n, digits := uint64(0), 0
	for ; i < len(b) && b[i]-'0' <= 9; i++ {
		n = n*10 + uint64(b[i]-'0')
		digits++
	}
	if digits == 0 || digits > 1 && b[first] == '0' {
		return 0, false
	}
	fraction := 0
	if i < len(b) && b[i] == '.' {
		point := i
		for i++; i < len(b) && b[i]-'0' <= 9; i++ {
			n = n*10 + uint64(b[i]-'0')
			digits++
		}
		if fraction = i - point - 1; fraction == 0 {
			return 0, false
		}
	}
	exponent := i < len(b) && (b[i] == 'e' || b[i] == 'E')
	if exponent {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		mark := i
		for ; i < len(b) && b[i]-'0' <= 9; i++ {
		}
		if i == mark {
			return 0, false
		}
	}
	r.at = i
	// Both are exact, so their quotient is the nearest.
	if !exponent && digits <= 19 && n < 1<<53 && fraction < len(powers) {
		v := float64(n) / powers[fraction]
		if b[from] == '-' {
			v = -v
		}
		return v, true
	}
	v, err := strconv.ParseFloat(string(b[from:i]), 64)
	return v, err == nil
}

// encoded is JSON that is written as it is.
type encoded []byte

// appendResponse writes what encoding/json writes of an answer.
func appendResponse(b []byte, r *v2Response) ([]byte, error) {
	// Names and versions of bundles need no escapes, see package model.
	b = append(b, `{"model_name":"`...)
	b = append(b, r.ModelName...)
	b = append(b, `","model_version":"`...)
	b = append(b, r.ModelVersion...)
	b = append(b, '"')
	if r.ID != "" {
		id, err := json.Marshal(r.ID)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"id":`...), id...)
	}
	b = append(b, `,"outputs":[`...)
	for i := range r.Outputs {
		o := &r.Outputs[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"name":"`...)
		b = append(b, o.Name...)
		b = append(b, `","datatype":"`...)
		b = append(b, o.Datatype...)
		b = append(b, `","shape":[`...)
		for j, n := range o.Shape {
			if j > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, int64(n), 10)
		}
		b = append(b, `],"data":[`...)
		for j, v := range o.Data {
			if j > 0 {
				b = append(b, ',')
			}
			b = appendNumber(b, v)
		}
		b = append(b, `]}`...)
	}
	return append(b, `]}`...), nil
}

// appendNumber writes a finite number as encoding/json does.
func appendNumber(b []byte, v float64) []byte {
	format := byte('f')
	if abs := math.Abs(v); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	b = strconv.AppendFloat(b, v, format, -1, 64)
	if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' {
		b[n-2] = b[n-1] // e-09 is e-9
		b = b[:n-1]
	}
	return b
}
