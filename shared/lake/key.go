package lake

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Root is the first part of every key that holds records.
const Root = "topics/"

// Key names a lake object. The layout is that of the S3 sink connector with a
// time-based partitioner of one hour, in UTC, so that readers of either find it:
//
//	topics/<topic>/year=YYYY/month=MM/day=DD/hour=HH/<topic>+<partition>+<offset>.json
type Key struct {
	Topic     string
	Partition int32
	// Hour is the hour of the records' timestamps; see Hour for what is allowed.
	Hour time.Time
	// Offset is the first record's. It has ten digits at least, so that keys sort
	// as offsets do up to that many.
	Offset int64
}

// String gives the key's text.
func (k Key) String() string {
	return fmt.Sprintf("%s%s+%d+%010d.json", k.Dir(), k.Topic, k.Partition, k.Offset)
}

// Dir gives the prefix of all objects of the key's topic and hour, with a slash at
// its end.
func (k Key) Dir() string {
	h := k.Hour.UTC()
	return fmt.Sprintf("%s%s/year=%04d/month=%02d/day=%02d/hour=%02d/",
		Root, k.Topic, h.Year(), h.Month(), h.Day(), h.Hour())
}

// ParseKey reads a key's text. What it accepts, String gives back unchanged.
func ParseKey(text string) (Key, error) {
	bad := func(what string) (Key, error) {
		return Key{}, fmt.Errorf("key %q: %s", text, what)
	}
	rest, ok := strings.CutPrefix(text, Root)
	if !ok {
		return bad("does not begin with " + Root)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 6 {
		return bad("is not topic/year=/month=/day=/hour=/name")
	}
	hour, err := time.Parse("year=2006/month=01/day=02/hour=15", strings.Join(parts[1:5], "/"))
	if err != nil {
		return bad("has no valid year=/month=/day=/hour=")
	}
	name, ok := strings.CutPrefix(parts[5], parts[0]+"+")
	if !ok {
		return bad("name does not begin with the topic")
	}
	name, ok = strings.CutSuffix(name, ".json")
	if !ok {
		return bad("name does not end with .json")
	}
	p, o, ok := strings.Cut(name, "+")
	if !ok {
		return bad("name is not topic+partition+offset")
	}
	partition, err := strconv.ParseInt(p, 10, 32)
	if err != nil {
		return bad("has no valid partition")
	}
	offset, err := strconv.ParseInt(o, 10, 64)
	if err != nil {
		return bad("has no valid offset")
	}
	k := Key{Topic: parts[0], Partition: int32(partition), Hour: hour, Offset: offset}
	if parts[0] == "" || partition < 0 || offset < 0 || k.String() != text {
		return bad("is not in its canonical form")
	}
	return k, nil
}

// The hours that a key can name. Kafka's timestamps are any 64-bit number of
// milliseconds: one that was never set (-1) or cannot be written with a year of
// four digits goes to the nearest of these; the line keeps the number itself.
const (
	firstHour = 0                   // 1970-01-01T00
	lastHour  = 253402297200 / 3600 // 9999-12-31T23
)

// Hour gives the hour, counted from 1970, under which a record with this timestamp
// in milliseconds is stored. It depends on nothing else.
func Hour(ms int64) int64 {
	return min(max(ms/3_600_000, firstHour), lastHour)
}

// HourTime gives the beginning of an hour that Hour has returned.
func HourTime(hour int64) time.Time { return time.Unix(hour*3600, 0).UTC() }
