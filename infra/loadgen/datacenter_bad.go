package main

import (
	"bytes"
	"math/rand/v2"
)

// wrongs are the ways in which a reading comes out wrong.
var wrongs = [...]string{"out_of_range", "missing_field", "wrong_type", "unknown_type", "bad_time", "not_json"}

// spoils decides whether the message with this number is wrong, and how.
func (m *meter) spoils(number uint64) (int, bool) {
	if m.flags.bad == 0 {
		return 0, false
	}
	dice := rand.NewPCG(m.flags.seed^badStream, number)
	dice.Uint64() // neighbouring seeds are still alike in the first number
	if float64(dice.Uint64()>>11)*0x1p-53 >= m.flags.bad {
		return 0, false
	}
	return int(dice.Uint64() % uint64(len(wrongs))), true
}

// spoil makes a message wrong.
func spoil(message []byte, how int) []byte {
	// The percentage that both kinds of messages have.
	name := []byte(`"cpu_usage_percent":`)
	if !bytes.Contains(message, name) {
		name = []byte(`"error_rate_percent":`)
	}
	at := bytes.Index(message, name) + len(name)
	end := at + bytes.IndexByte(message[at:], ',')
	value := bytes.Clone(message[at:end])
	replace := func(from, to int, with string) []byte {
		rest := bytes.Clone(message[to:])
		return append(append(message[:from], with...), rest...)
	}
	switch wrongs[how] {
	case "out_of_range":
		return replace(at, end, "131.42")
	case "missing_field":
		return replace(at-len(name), end+1, "")
	case "wrong_type":
		return replace(at, end, `"`+string(value)+`"`)
	case "unknown_type":
		from := len(`{"type":"`)
		return replace(from, from+bytes.IndexByte(message[from:], '"'), "fan_metric")
	case "bad_time":
		name := []byte(`"timestamp":"`)
		from := bytes.Index(message, name) + len(name)
		return replace(from, from+bytes.IndexByte(message[from:], '"'), "yesterday")
	}
	return message[:len(message)/2]
}
