package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/timeseries"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// series are the tables that are cut by time, those of contracts among them. It is safe
// for concurrent use.
type series struct {
	db        *warehouse.DB
	contracts *contract.Set
	retention time.Duration

	mu sync.Mutex
	// made tells that all tables were looked at; mismatches are the contracts whose
	// tables do not fit, and why.
	made       bool
	mismatches map[string]error
}

func newSeries(db *warehouse.DB, contracts *contract.Set, retention time.Duration) *series {
	return &series{db: db, contracts: contracts, retention: retention, mismatches: map[string]error{}}
}

// stored are the contracts with a table.
func (s *series) stored() []*contract.Contract {
	return slices.DeleteFunc(s.contracts.Contracts(), func(c *contract.Contract) bool { return c.Table == "" })
}

// tables makes those of the contracts.
func (s *series) tables() []*table {
	var list []*table
	for _, c := range s.stored() {
		list = append(list, contractTable(c))
	}
	return list
}

// contractTable is where the records of a contract go: a column a field.
func contractTable(c *contract.Contract) *table {
	quote := func(name string) string { return pgx.Identifier{name}.Sanitize() }
	t := &table{event: c.Verdicts.Valid, contract: c.Name, name: timeseries.Name(c.Table), series: c.Table, time: quote(c.EventTime)}
	fields := timeseries.Stored(c)
	required := make([]bool, len(c.Fields))
	for _, i := range fields {
		t.columns = append(t.columns, quote(c.Fields[i].Name))
	}
	for _, name := range c.NaturalKey {
		t.key = append(t.key, quote(name))
		for i := range c.Fields {
			required[i] = required[i] || c.Fields[i].Name == name
		}
	}
	// A reader is not for two calls at a time.
	readers := sync.Pool{New: func() any { return c.Reader() }}
	t.write = func(e *event.Event, r *row) error {
		reader := readers.Get().(*contract.Reader)
		defer readers.Put(reader)
		values, err := reader.Read(e.Data())
		if err != nil {
			return err
		}
		for _, i := range fields {
			f, v := &c.Fields[i], &values[i]
			switch {
			case !v.Present && required[i]:
				return fmt.Errorf("field %s is required: it is in the natural key of contract %s", f.Name, c.Name)
			case !v.Present:
				r.null()
			case f.Type == contract.String:
				r.bytes(v.Text)
			case f.Type == contract.Int64:
				r.int64(v.Int)
			case f.Type == contract.Double:
				r.float64(v.Float)
			case f.Type == contract.Boolean:
				r.bool(v.Bool)
			case f.Name == c.EventTime:
				r.at(v.Time)
			default:
				r.time(v.Time)
			}
		}
		return r.err
	}
	return t
}

// ready makes the tables of all contracts the first time.
func (s *series) ready(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made {
		return nil
	}
	for _, c := range s.stored() {
		if err := s.ensure(ctx, c); err != nil {
			return err
		}
	}
	refusals, err := timeseries.Refusals(ctx, s.db)
	if err != nil {
		return err
	}
	for table, reason := range refusals {
		slog.Warn("TimescaleDB is there and would not keep a table, so PostgreSQL's partitions do", "table", table, "error", reason)
	}
	s.made = true
	return nil
}

// ensure makes or widens a contract's table. One that does not fit is told of, and its
// records are refused, while all others are stored.
func (s *series) ensure(ctx context.Context, c *contract.Contract) error {
	err := timeseries.Ensure(ctx, s.db, c)
	if mismatch, ok := errors.AsType[*timeseries.MismatchError](err); ok {
		if s.mismatches[c.Name] == nil {
			slog.Error("records of a contract are refused", "contract", c.Name, "error", mismatch)
		}
		s.mismatches[c.Name] = mismatch
		return nil
	}
	if err == nil {
		delete(s.mismatches, c.Name)
	}
	return err
}

// refuse sets the results of the entries whose tables do not fit their contracts, and
// returns the others.
func (s *series) refuse(entries []entry, results []function.Result) []entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mismatches) == 0 {
		return entries
	}
	return slices.DeleteFunc(entries, func(e entry) bool {
		err := s.mismatches[e.to.contract]
		if err != nil {
			results[e.event].Err = function.Invalid("%w", err)
		}
		return err != nil
	})
}

// missing says why there is no table for an event; nil if its contract names none.
func (s *series) missing(typ, name string) error {
	var names []string
	stored, known := false, false
	for _, c := range s.contracts.Contracts() {
		if c.Verdicts.Valid == typ {
			names = append(names, c.Name)
			stored, known = stored || c.Table != "", known || c.Name == name
		}
	}
	switch {
	case stored && known:
		return nil // its contract names no table, another one's of the type does
	case !stored:
		return function.Invalid("there is no table for events of type %s", typ)
	case name == "":
		return function.Invalid("extension contract is required: it names the contract of the record, one of: %s", strings.Join(names, ", "))
	}
	return function.Invalid("extension contract: there is no contract %q for events of type %s, only: %s", name, typ, strings.Join(names, ", "))
}

// days are those whose partition is there, as far as this process knows.
type days struct {
	mu    sync.Mutex
	known map[int32]bool
}

// cover makes the partitions that rows need. A row of a day that gets none needs none.
func (s *series) cover(ctx context.Context, entries []entry) error {
	var needed map[*target][]time.Time
	now := time.Now()
	for i := range entries {
		t := entries[i].to
		if t.series == "" || i > 0 && entries[i-1].to == t && entries[i-1].hour == entries[i].hour {
			continue
		}
		number := int32(floor(int64(entries[i].hour), 24))
		t.days.mu.Lock()
		known := t.days.known[number]
		t.days.mu.Unlock()
		if known {
			continue
		}
		day := time.Unix(int64(number)*86400, 0).UTC()
		if first, last := timeseries.Window(now, s.retention); day.Before(first) || day.After(last) || slices.Contains(needed[t], day) {
			continue
		}
		if needed == nil {
			needed = map[*target][]time.Time{}
		}
		needed[t] = append(needed[t], day)
	}
	for t, list := range needed {
		slices.SortFunc(list, time.Time.Compare)
		if err := timeseries.Cover(ctx, s.db, t.series, list); err != nil {
			return err
		}
		t.days.mu.Lock()
		if t.days.known == nil || len(t.days.known) > 10_000 {
			t.days.known = map[int32]bool{}
		}
		for _, day := range list {
			t.days.known[int32(floor(day.Unix(), 86400))] = true
		}
		t.days.mu.Unlock()
	}
	return nil
}

// upkeep is what a tick asks for.
func (s *series) upkeep(ctx context.Context) error {
	s.mu.Lock()
	for name := range s.mismatches {
		c, _ := s.contracts.Contract(name)
		if err := s.ensure(ctx, c); err != nil {
			s.mu.Unlock()
			return err
		}
	}
	s.mu.Unlock()
	hours, dropped, err := timeseries.Upkeep(ctx, s.db, time.Now(), s.retention)
	if err != nil {
		return fmt.Errorf("keeping the tables by time: %w", err)
	}
	if dropped > 0 {
		slog.Info("old days were dropped", "partitions", dropped, "older_than", s.retention)
	}
	slog.Debug("aggregates refreshed", "hours", hours)
	return nil
}
