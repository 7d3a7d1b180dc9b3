package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

const (
	eventsRoot  = "events/"
	replaysRoot = "replays/"
	keyTime     = "20060102T150405.000Z"
	// undated stands for the time of an event that has none.
	undated = "00000000T000000.000Z"
	// maxTypeLen bounds the type's part of a key; object keys end at 1024 bytes.
	maxTypeLen = 120
)

// keyOf names a dead letter:
//
//	<event time>_<type>_<hash of source, id and destination>
//
// It depends on nothing that differs between deliveries of the same event to the
// same destination, so such deliveries are one dead letter. It begins with the
// time, so a listing is in order of time and can begin at one.
func keyOf(m *events.Message) string {
	at := undated
	if t, err := time.Parse(time.RFC3339Nano, m.Get("time")); err == nil {
		if t = t.UTC(); t.Year() >= 1 && t.Year() <= 9999 {
			at = t.Format(keyTime)
		}
	}
	h := sha256.New()
	var n [8]byte
	for _, part := range []string{m.Get("source"), m.Get("id"), m.Get(events.ErrorDest)} {
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	return at + "_" + typePart(m.Get("type")) + "_" + hex.EncodeToString(h.Sum(nil)[:16])
}

// typePart is a type as it stands in keys. Types that differ only in unusual
// characters or very far behind share one.
func typePart(typ string) string {
	part := strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '-'
	}, typ)
	return part[:min(len(part), maxTypeLen)]
}

var keyForm = regexp.MustCompile(`^([0-9]{4})([0-9]{2})([0-9]{2})T[0-9]{6}\.[0-9]{3}Z_([A-Za-z0-9.-]{1,120})_[0-9a-f]{32}$`)

// path gives the part that a key's objects have in common.
func path(key string) (string, error) {
	m := keyForm.FindStringSubmatch(key)
	if m == nil {
		return "", fmt.Errorf("%q is no dead letter's key, which is <time>_<type>_<hash>", key)
	}
	return fmt.Sprintf("year=%s/month=%s/day=%s/%s.json", m[1], m[2], m[3], key), nil
}

// keyAt gives what the paths of events from t on sort behind.
func keyAt(t time.Time) string {
	t = t.UTC()
	return t.Format("year=2006/month=01/day=02/") + t.Format(keyTime)
}

// keyIn gives the key of an object under eventsRoot, "" for anything else.
func keyIn(object string) string {
	name := object[strings.LastIndexByte(object, '/')+1:]
	key := strings.TrimSuffix(name, ".json")
	if p, err := path(key); err != nil || eventsRoot+p != object {
		return ""
	}
	return key
}
