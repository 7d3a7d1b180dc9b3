package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/health"
)

// The screen says which store is away and since when, says for a while that it is well
// again, and nothing of those that always were.
func TestScreenTellsOfStores(t *testing.T) {
	s := busy()
	at := time.Date(2026, 11, 22, 3, 3, 11, 0, time.Local)
	s.Time = at.Add(time.Minute)
	s.Stores = []health.State{
		{Name: "kafka", Up: true, Since: at.Add(-time.Hour)},
		{Name: "s3", Up: true, Since: at.Add(-time.Hour), AwaySeconds: 3},
		{Name: "redis", Since: at, Error: "dial tcp 127.0.0.1:16379: connect: connection refused"},
		{Name: "postgres", Up: true, Since: at.Add(51 * time.Second), AwaySeconds: 51.2},
	}
	var got []string
	for _, l := range storeLines(s, 79)[2:] {
		got = append(got, strings.TrimRight(ansi.ReplaceAllString(l, ""), " "))
	}
	want := []string{
		" redis is away since 03:03:11: dial tcp 127.0.0.1:16379: connect: connection r…",
		" postgres is well again since 03:04:02, away for 51 s",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}
