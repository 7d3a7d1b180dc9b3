package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/quality"
	"github.com/millrace-dev/millrace/shared/warehouse"
)

// Steps does the work of all steps. It is safe for concurrent use.
type Steps struct {
	db       *warehouse.DB
	store    *lake.Store
	function string
	reports  string
	suites   map[string]*quality.Suite
	bucket   atomic.Bool // that of the reports is there
	sweeper  *sweeper    // nil when there is nowhere to send to
	metrics  *metrics
	// Each holds a token a step that is under way. A step of gold waits for the others in
	// the database if it has to, but of one process's no more than one need do that.
	turns, goldTurn chan struct{}
}

//go:embed suites.yaml
var builtinSuites []byte

// suiteNames are the suites that have to be there, one a layer.
var suiteNames = []string{"bronze", "silver", "gold"}

// NewSteps makes Steps that reply in the function's name, write their reports to a
// bucket and check by the built-in suites or those of a file. They do so many steps at
// a time, and one of gold besides; further calls wait.
func NewSteps(db *warehouse.DB, store *lake.Store, function, reports, suites string, atOnce int) (*Steps, error) {
	text := builtinSuites
	if suites != "" {
		var err error
		if text, err = os.ReadFile(suites); err != nil {
			return nil, fmt.Errorf("ETL_SUITES: %w", err)
		}
	}
	s := &Steps{db: db, store: store, function: function, reports: reports,
		turns: make(chan struct{}, atOnce), goldTurn: make(chan struct{}, 1)}
	var err error
	if s.metrics, err = newMetrics(); err != nil {
		return nil, err
	}
	if s.suites, err = quality.Parse(text); err != nil {
		return nil, err
	}
	for _, name := range suiteNames {
		if s.suites[name] == nil {
			return nil, fmt.Errorf("ETL_SUITES: there is no suite %s", name)
		}
	}
	return s, nil
}

// Ready brings the schema up to date and makes the bucket of the reports.
func (s *Steps) Ready(ctx context.Context) error {
	if err := s.db.Ready(ctx); err != nil {
		return err
	}
	if s.bucket.Load() {
		return nil
	}
	if _, err := s.store.EnsureBucket(ctx, s.reports); err != nil {
		return err
	}
	s.bucket.Store(true)
	return nil
}

// object is what a step is about.
type object struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
}

func (o object) String() string { return o.Bucket + "/" + o.Key }

// progress is the data of the events of the steps.
type progress struct {
	object
	// Step is the one that was done, or that failed.
	Step string `json:"step"`
	// Rows are those of the object that have come through the step so far.
	Rows int64 `json:"rows"`
	// Quarantined are the object's lines that could not be loaded.
	Quarantined int64 `json:"quarantined"`
	// Reason and Checks say why a batch goes no further.
	Reason string   `json:"reason,omitempty"`
	Checks []string `json:"failed_checks,omitempty"`
}

// outcome is what a step came to.
type outcome struct {
	state string // of etl.runs
	rows  int64  // written by this run
	// reason is why the batch was stopped or the object refused.
	reason string
	checks []string
	// silent is set when there is nothing that a next step could be about.
	silent bool
}

// The states of a run that ended.
const (
	succeeded = "succeeded"
	stopped   = "stopped" // by a failed check
	refused   = "refused" // nothing of the object could be loaded
	failed    = "failed"  // and will be tried again
)

// step is one of the chain.
type step struct {
	name string
	done string // the type of the event that says so
	// stages are those of etl.loads that have come through the step.
	stages []string
	// isolation is what the step needs of its transaction beyond the usual.
	isolation pgx.TxIsoLevel
	run       func(*Steps, context.Context, pgx.Tx, object) (outcome, error)
}

var (
	bronzeStep = &step{"bronze", events.BronzeLoaded, []string{"bronze", "silver", "gold", "checked"}, "", (*Steps).bronze}
	silverStep = &step{"silver", events.SilverTransformed, []string{"silver", "gold", "checked"}, "", (*Steps).silver}
	goldStep   = &step{"gold", events.GoldLoaded, []string{"gold", "checked"}, "", (*Steps).gold}
	// Facts and dimensions are looked at by several statements, and a step of gold between
	// two of them may take a dimension away together with the last fact that needs it.
	checkStep = &step{"check", events.GoldChecked, []string{"checked"}, pgx.RepeatableRead, (*Steps).check}
)

func stepOf(typ string) *step {
	switch {
	case strings.HasPrefix(typ, events.ObjectCreated):
		return bronzeStep
	case typ == events.BronzeLoaded:
		return silverStep
	case typ == events.SilverTransformed:
		return goldStep
	case typ == events.GoldLoaded:
		return checkStep
	}
	return nil
}

// objectOf reads which object an event is about: from its data, as a notification's
// record or as the event of a step has it.
func objectOf(e *event.Event) (object, error) {
	var data struct {
		object
		S3 struct {
			Bucket struct {
				Name string `json:"name"`
			} `json:"bucket"`
			Object struct {
				Key string `json:"key"`
			} `json:"object"`
		} `json:"s3"`
	}
	if err := json.Unmarshal(e.Data(), &data); err != nil {
		return object{}, function.Invalid("the data of %s is no JSON of an object: %v", e.Type(), err)
	}
	o := data.object
	if o.Key == "" {
		key, err := url.QueryUnescape(data.S3.Object.Key)
		if err != nil {
			return o, function.Invalid("s3.object.key: %v", err)
		}
		o = object{data.S3.Bucket.Name, key}
	}
	if o.Bucket == "" || o.Key == "" {
		return o, function.Invalid("the data of %s names no bucket and key", e.Type())
	}
	if strings.ContainsRune(o.Key, 0) {
		return o, function.Invalid("the key has a NUL character")
	}
	return o, nil
}

// Handle does the step that the event asks for and replies with the event of the
// next. A step that finds nothing to do replies too: the process may have died
// after its work and before its reply.
func (s *Steps) Handle(ctx context.Context, e event.Event) (*event.Event, error) {
	if e.Type() == events.Tick {
		return nil, s.tick(ctx)
	}
	st := stepOf(e.Type())
	if st == nil {
		return nil, function.Invalid("no step for events of type %s", e.Type())
	}
	o, err := objectOf(&e)
	if err != nil {
		return nil, err
	}
	if err := s.Ready(ctx); err != nil {
		return nil, function.Unavailable(err, 2*time.Second)
	}
	// Gold has a turn of its own, so that those that wait for it leave the CPUs to the
	// other steps.
	turns := s.turns
	if st == goldStep {
		turns = s.goldTurn
	}
	select {
	case turns <- struct{}{}:
		defer func() { <-turns }()
	case <-ctx.Done():
		return nil, function.Unavailable(fmt.Errorf("waiting for other steps: %w", ctx.Err()), 2*time.Second)
	}
	out, err := s.do(ctx, st, o, e.ID())
	if err != nil {
		err = fmt.Errorf("step %s of %s: %w", st.name, o, err)
		if repeatable(err) {
			return nil, function.Unavailable(err, 2*time.Second)
		}
		return nil, err
	}
	if out.silent {
		return nil, nil
	}
	return s.reply(ctx, &e, st, o, out)
}

// tick sweeps. What it finds goes the way of a notification.
func (s *Steps) tick(ctx context.Context) error {
	if s.sweeper == nil {
		return function.Invalid("there is no K_SINK to send to what a sweep finds")
	}
	if err := s.Ready(ctx); err != nil {
		return function.Unavailable(err, 2*time.Second)
	}
	if err := s.sweeper.sweep(ctx); err != nil {
		return function.Unavailable(fmt.Errorf("sweeping: %w", err), 2*time.Second)
	}
	return nil
}

// repeatable tells errors that say something about the moment from those that say
// something about the data or the program.
func repeatable(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true // the network's, the store's, a timeout
	}
	switch pg.Code[:2] {
	case "08", "25", "40", "53", "55", "57", "58":
		return true
	}
	return false
}

// maxAttempts bounds how often a step is begun anew after a deadlock, or after another
// transaction was first with the same object.
const maxAttempts = 5

// do runs a step in a transaction and keeps account of it in etl.runs.
func (s *Steps) do(ctx context.Context, st *step, o object, eventID string) (outcome, error) {
	began := time.Now()
	var run int64
	err := s.db.QueryRow(ctx, `INSERT INTO etl.runs (step, bucket, key, event_id, state) VALUES ($1, $2, $3, $4, 'running') RETURNING run_id`,
		st.name, o.Bucket, o.Key, eventID).Scan(&run)
	if err != nil {
		return outcome{}, fmt.Errorf("noting the run: %w", err)
	}
	const finish = `UPDATE etl.runs SET state = $2, rows = $3, error = nullif($4, ''), seconds = $5, finished_at = clock_timestamp() WHERE run_id = $1`
	var out outcome
	for attempt := 1; ; attempt++ {
		err = pgx.BeginTxFunc(ctx, s.db, pgx.TxOptions{IsoLevel: st.isolation}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, settings); err != nil {
				return fmt.Errorf("preparing the transaction: %w", err)
			}
			var err error
			if out, err = st.run(s, ctx, tx, o); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, finish, run, out.state, out.rows, out.reason, time.Since(began).Seconds())
			return err
		})
		var pg *pgconn.PgError
		if err == nil || attempt == maxAttempts || !errors.As(err, &pg) || pg.Code[:2] != "40" {
			break
		}
	}
	if err != nil {
		note, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, noteErr := s.db.Exec(note, finish, run, failed, 0, strings.ToValidUTF8(err.Error(), "\ufffd"), time.Since(began).Seconds()); noteErr != nil {
			slog.WarnContext(ctx, "a failed run could not be noted", "error", noteErr)
		}
		s.metrics.ran(ctx, st.name, failed, 0, began)
		return out, err
	}
	s.metrics.ran(ctx, st.name, out.state, out.rows, began)
	level := slog.LevelInfo
	if out.rows == 0 && out.state == succeeded {
		level = slog.LevelDebug
	}
	if out.state != succeeded {
		level = slog.LevelWarn
	}
	slog.Log(ctx, level, "step done", "step", st.name, "object", o.String(), "state", out.state, "rows", out.rows,
		"reason", out.reason, "seconds", time.Since(began).Seconds())
	return out, nil
}

// settings are those of a step's transaction. Steps join few thousand rows with
// large tables by their keys, which are mostly in memory: an index is right even
// where the planner, with its disks in mind, would rather read the whole table; and
// a plan for a thousand rows is wrong for a million. Of temporary tables it knows too
// little to see that sorting both sides of a join costs more than hashing one.
const settings = `SET LOCAL work_mem = '64MB'; SET LOCAL random_page_cost = 0.2; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_mergejoin = off`

func (s *Steps) reply(ctx context.Context, e *event.Event, st *step, o object, out outcome) (*event.Event, error) {
	typ := st.done
	if out.state != succeeded {
		typ = events.ETLFailed
	}
	p := progress{object: o, Step: st.name, Reason: out.reason, Checks: out.checks}
	err := s.db.QueryRow(ctx, `SELECT coalesce(sum(l.rows), 0)::bigint, coalesce(max(l.quarantined), 0) FROM etl.loads l JOIN etl.objects o USING (object_id)
		WHERE o.bucket = $1 AND o.key = $2 AND l.stage = ANY ($3)`, o.Bucket, o.Key, st.stages).Scan(&p.Rows, &p.Quarantined)
	if err != nil {
		return nil, function.Unavailable(fmt.Errorf("summing up %s: %w", o, err), 2*time.Second)
	}
	r := events.NewReply(e, s.function, typ)
	r.SetSubject(o.Key)
	r.SetExtension("bucket", o.Bucket)
	if typ == events.ETLFailed {
		// For Triggers of alerts: at which step, and whether data that was expected is held
		// back or a file is no lake object.
		r.SetExtension("step", st.name)
		r.SetExtension("severity", map[string]string{stopped: "critical", refused: "warning"}[out.state])
	}
	if err := r.SetData(event.ApplicationJSON, p); err != nil {
		return nil, fmt.Errorf("writing the reply: %w", err)
	}
	return &r, nil
}
