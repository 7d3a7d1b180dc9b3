package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
)

func (w *world) want(what string, decisions, types []string, serving string) {
	w.t.Helper()
	if diff := cmp.Diff(decisions, w.decisions()); diff != "" {
		w.t.Errorf("%s: decisions (-want +got):\n%s", what, diff)
	}
	if diff := cmp.Diff(types, w.broker.distinct()); diff != "" {
		w.t.Errorf("%s: events (-want +got):\n%s", what, diff)
	}
	if got, _ := w.aliases.current(); got != serving {
		w.t.Errorf("%s: version %q serves, want %q", what, got, serving)
	}
}

// TestLifeOfAModel goes from the first rows to a rollback.
func TestLifeOfAModel(t *testing.T) {
	w := newWorld(t)
	w.rows(9)
	w.tickAt(time.Second)
	w.want("too few rows", nil, nil, "")
	w.rows(1)
	w.must(w.event(events.GoldChecked, "/millrace/etl-step", "key", map[string]any{}))
	w.want("enough rows", []string{"train"}, []string{"training.requested"}, "")
	m, data := w.broker.last(t, events.TrainingRequested)
	if m.Get("subject") != shop || data["model"] != shop || data["trials"] != 3.0 || data["max_rows"] != nil || data["since"] != nil || data["reason"] != "rows: 10 new rows, of which 10 are enough" {
		t.Errorf("asked for %v", data)
	}
	w.rows(1000)
	w.tickAt(time.Minute) // one run at a time
	w.must(w.ended(w.aliases.add(), 0, ""))
	w.want("the first", []string{"train", "promote 1"}, []string{"training.requested", "model.promoted"}, "1")
	_, data = w.broker.last(t, events.ModelPromoted)
	if data["version"] != "1" || data["former_version"] != "" || data["run_id"] != "r1" || !strings.HasPrefix(fmt.Sprint(data["reason"]), "it is the first") {
		t.Errorf("told %v", data)
	}

	w.tickAt(time.Minute) // in the cool-down
	w.rows(100)
	w.tickAt(8 * time.Minute) // ten minutes after the request
	w.must(w.ended(w.aliases.add(), -0.1, "1"))
	w.want("a worse one", []string{"train", "promote 1", "train", "keep 2"},
		[]string{"training.requested", "model.promoted", "training.requested", "model.kept"}, "1")

	w.must(w.driftEvent())
	w.tickAt(time.Minute) // drift has a rest of its own
	if _, data := w.broker.last(t, events.TrainingRequested); data["reason"] != "drift: drift was detected" || data["trials"] != 3.0 || data["max_rows"] != 5.0 || data["since"] != driftFrom {
		t.Errorf("asked for %v", data)
	}
	w.must(w.ended(w.aliases.add(corrupt), 0.1, "1"))
	if _, data := w.broker.last(t, events.ModelKept); !strings.Contains(fmt.Sprint(data["reason"]), "50 bytes") {
		t.Errorf("told %v", data)
	}
	w.clock = w.clock.Add(time.Minute)
	w.must(w.driftEvent())
	w.must(w.ended(w.aliases.add(), 0.1, "1"))
	if got, _ := w.aliases.current(); got != "4" {
		t.Errorf("version %s serves, want 4", got)
	}

	for _, want := range []move{{shop, "4", "1", "it is odd"}, {shop, "1", "4", "it was not"}} {
		to := ""
		if want.To == "4" {
			to = "4" // before the first there is none to go back to
			if _, err := w.rollback(t.Context(), shop, "", "", "", cause{"/test", "x"}); err == nil || !strings.Contains(err.Error(), "name one") {
				t.Errorf("%v", err)
			}
		}
		got, err := w.rollback(t.Context(), shop, want.From, to, want.Reason, cause{"/test", want.From})
		if err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		// Once more: the same answer, no second move.
		_, moves := w.aliases.current()
		if again, err := w.rollback(t.Context(), shop, want.From, to, want.Reason, cause{"/test", want.From}); err != nil || again != want {
			t.Errorf("again %+v, %v", again, err)
		}
		if now, count := w.aliases.current(); now != want.To || count != moves {
			t.Errorf("version %s serves after %d moves, want %s after %d", now, count, want.To, moves)
		}
	}
	if _, data := w.broker.last(t, events.ModelRolledBack); data["version"] != "4" || data["former_version"] != "1" || data["reason"] != "it was not" {
		t.Errorf("told %v", data)
	}
	for _, c := range []struct{ from, to, says string }{{"1", "", "version 4 of " + shop + " serves, not 1"}, {"", "4", "serves already"}, {"", "99", "no version 99"}} {
		_, err := w.rollback(t.Context(), shop, c.from, c.to, "", cause{"/test", c.says})
		if wrong := (*conflictError)(nil); !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("from %q to %q: %v", c.from, c.to, err)
		}
	}
}

// A model that was trained while a rollback happened was compared with a version that
// does not serve any more.
func TestRollbackDuringARun(t *testing.T) {
	w := newWorld(t)
	for i := range 2 {
		w.must(w.driftEvent())
		serving, _ := w.aliases.current()
		w.must(w.ended(w.aliases.add(), 1, serving))
		w.tickAt(time.Duration(i+1) * time.Hour)
	}
	w.must(w.driftEvent())
	if _, err := w.rollback(t.Context(), shop, "", "", "", cause{"/test", "1"}); err != nil {
		t.Fatal(err)
	}
	w.must(w.ended(w.aliases.add(), 1, "2"))
	if _, data := w.broker.last(t, events.ModelKept); data["reason"] != "it was compared with version 2, and version 1 serves" {
		t.Errorf("told %v", data)
	}
	if got, _ := w.aliases.current(); got != "1" {
		t.Errorf("version %s serves", got)
	}
}

// TestDeathAnywhere lets the process die between any two steps of a life, and again at
// each try after it, and compares with one that never died.
func TestDeathAnywhere(t *testing.T) {
	for _, step := range []string{"judged", "moved", "sending", "sent", "rolling back"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			died := errors.New("died")
			deaths := 0
			// try does something whose sender comes again until it is taken. At every first
			// try, and then with the learner that is started, the process dies once.
			try := func(do func() error) {
				t.Helper()
				for attempt := 0; ; attempt++ {
					w.again()
					if attempt < 2 {
						w.reached = func(at string) error {
							if at == step {
								deaths++
								return died
							}
							return nil
						}
					}
					if err := do(); err == nil && attempt >= 2 {
						return
					} else if attempt > 2 {
						t.Fatalf("try %d: %v", attempt, err)
					}
				}
			}
			for _, gain := range []float64{0, 1, -1} {
				drift := w.driftEvent()
				try(func() error { return w.handle(drift) })
				serving, _ := w.aliases.current()
				ended := w.ended(w.aliases.add(), gain, serving)
				try(func() error { return w.handle(ended) })
				w.clock = w.clock.Add(time.Hour)
			}
			try(func() error {
				_, err := w.rollback(t.Context(), shop, "2", "", "", cause{"/test", "1"})
				return err
			})
			w.tickAt(0)
			w.want(step, []string{"train", "promote 1", "train", "promote 2", "train", "keep 3", "rollback 1"},
				[]string{"training.requested", "model.promoted", "training.requested", "model.promoted", "training.requested", "model.kept", "model.rolledback"}, "1")
			if deaths == 0 {
				t.Error("nothing died")
			}
		})
	}
}

// A promotion that was decided and not done must not undo a rollback that comes later.
func TestRollbackAfterADeath(t *testing.T) {
	w := newWorld(t)
	w.must(w.driftEvent())
	w.must(w.ended(w.aliases.add(), 0, ""))
	w.clock = w.clock.Add(time.Hour)
	w.must(w.driftEvent())
	ended := w.ended(w.aliases.add(), 1, "1")
	w.reached = func(at string) error {
		if at == "judged" {
			return errors.New("died")
		}
		return nil
	}
	if err := w.handle(ended); err == nil {
		t.Fatal("nothing died")
	}
	if got, _ := w.aliases.current(); got != "1" {
		t.Fatalf("version %s serves", got)
	}
	w.again()
	if got, err := w.rollback(t.Context(), shop, "", "", "", cause{"/test", "1"}); err != nil || got.From != "2" || got.To != "1" {
		t.Fatalf("%+v, %v", got, err)
	}
	w.must(ended)
	w.tickAt(time.Second)
	w.want("at the end", []string{"train", "promote 1", "train", "promote 2", "rollback 1"},
		[]string{"training.requested", "model.promoted", "training.requested", "model.promoted", "model.rolledback"}, "1")
}

// Whatever comes twice, at the same time and by several processes, has one effect.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	w.rows(10)
	all := func(do func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if err := do(i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	tick := w.event(events.Tick, "/apis/v1/namespaces/millrace/pingsources/learning-tick", "", map[string]any{})
	drift := w.driftEvent()
	all(func(i int) error {
		if i%2 == 0 {
			return w.handle(tick)
		}
		return w.handle(drift)
	})
	ended := w.ended(w.aliases.add(), 0, "")
	all(func(int) error { return w.handle(ended) })
	all(func(int) error { return w.handle(drift) })
	w.want("at the end", []string{"train", "promote 1"}, []string{"training.requested", "model.promoted"}, "1")
	if _, moves := w.aliases.current(); moves != 1 {
		t.Errorf("the alias moved %d times", moves)
	}
}

func TestRunThatDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	w.must(w.driftEvent())
	late := w.ended(w.aliases.add(), 0, "")
	w.tickAt(30 * time.Minute)
	w.want("at the deadline", []string{"train"}, []string{"training.requested"}, "")
	w.tickAt(time.Second)
	w.want("after it", []string{"train", "give up"}, []string{"training.requested", "training.failed"}, "")
	m, data := w.broker.last(t, events.TrainingFailed)
	if data["reason"] != "timeout" || data["message"] != "no answer within 30m0s" || m.Get("subject") != shop {
		t.Errorf("told %v", data)
	}
	// Its own event comes back, and the answer comes late.
	e, err := m.Event()
	if err != nil {
		t.Fatal(err)
	}
	w.must(e)
	w.must(late)
	w.must(late)
	w.tickAt(59 * time.Second)
	w.want("the late answer", []string{"train", "give up", "keep 1"}, []string{"training.requested", "training.failed", "model.kept"}, "")
	w.tickAt(time.Second)
	w.must(w.ended(w.aliases.add(), 0, ""))
	w.want("the next try", []string{"train", "give up", "keep 1", "train", "promote 2"},
		[]string{"training.requested", "training.failed", "model.kept", "training.requested", "model.promoted"}, "2")
}

func TestRunThatFails(t *testing.T) {
	w := newWorld(t)
	w.must(w.driftEvent())
	failed := w.failedEvent("registry_error", true)
	w.must(failed)
	w.must(failed)
	w.tickAt(59 * time.Second)
	w.want("before it may be tried again", []string{"train"}, []string{"training.requested"}, "")
	w.tickAt(time.Second)
	w.want("the next try", []string{"train", "train"}, []string{"training.requested", "training.requested"}, "")
	if _, data := w.broker.last(t, events.TrainingRequested); data["reason"] != "retry: the run before could not do its work" ||
		data["since"] != driftFrom || data["max_rows"] != 5.0 {
		t.Errorf("asked for %v", data)
	}
	w.must(w.failedEvent("too_little_data", false)) // the same again would fail again
	w.tickAt(time.Hour)
	w.want("after a failure for good", []string{"train", "train"}, []string{"training.requested", "training.requested"}, "")
	w.rows(10)
	w.tickAt(time.Second)
	w.want("with more rows", []string{"train", "train", "train"}, []string{"training.requested", "training.requested", "training.requested"}, "")
}

func TestNothingThatCannotBeServedReplacesNothing(t *testing.T) {
	w := newWorld(t)
	w.must(w.driftEvent())
	w.must(w.ended(w.aliases.add(corrupt), 0, ""))
	w.want("corrupt", []string{"train", "keep 1"}, []string{"training.requested", "model.kept"}, "")
	// Nothing serves yet, so the next try does not wait for the rows of a successor.
	w.rows(10)
	w.tickAt(59 * time.Second)
	w.want("too early", []string{"train", "keep 1"}, []string{"training.requested", "model.kept"}, "")
	w.tickAt(time.Second)
	w.must(w.ended("7", 0, "")) // which nobody has registered
	if _, data := w.broker.last(t, events.ModelKept); !strings.Contains(fmt.Sprint(data["reason"]), "not found") {
		t.Errorf("told %v", data)
	}
}

// What is away is waited for, and nothing is forgotten.
func TestRegistryAndBrokerAway(t *testing.T) {
	w := newWorld(t)
	w.aliases.set(func() { w.aliases.away = true })
	drift := w.driftEvent()
	w.must(drift)
	w.want("without a registry nothing is asked for", nil, nil, "")
	w.aliases.set(func() { w.aliases.away = false })
	w.broker.set(true)
	err := w.handle(w.event(events.Tick, "/pingsources/learning-tick", "", map[string]any{}))
	if function.Status(err) != 503 {
		t.Errorf("%v, want 503", err)
	}
	w.want("without a Broker nothing is told", []string{"train"}, nil, "")
	w.broker.set(false)
	w.tickAt(time.Second)
	w.want("both are there", []string{"train"}, []string{"training.requested"}, "")

	ended := w.ended(w.aliases.add(), 0, "")
	w.aliases.set(func() { w.aliases.away = true })
	if err := w.handle(ended); function.Status(err) != 503 {
		t.Errorf("%v, want 503", err)
	}
	w.tickAt(time.Hour) // not given up: it has answered
	w.aliases.set(func() { w.aliases.away = false })
	w.tickAt(time.Second)
	w.want("judged at a tick", []string{"train", "promote 1"}, []string{"training.requested", "model.promoted"}, "1")
}

func TestBadEvents(t *testing.T) {
	w := newWorld(t)
	w.must(w.driftEvent())
	for _, c := range []struct {
		name, typ, subject string
		data               any
		says               string
	}{
		{"unknown type", "dev.millrace.other.v1", "", map[string]any{}, "ask for nothing here"},
		{"drift of an unknown model", events.DriftDetected, "other", map[string]any{}, `no policy for model "other"`},
		{"no JSON object", events.TrainingCompleted, shop, "text", "cannot be read"},
		{"unknown model", events.TrainingCompleted, "", map[string]any{"model": "other"}, `no policy for model "other"`},
		{"unknown run", events.TrainingCompleted, "", map[string]any{"model": shop, "request": request{"/millrace/train-trigger", "x"}}, `request "x"`},
		{"failure of an unknown run", events.TrainingFailed, "", map[string]any{"model": shop, "request": request{"/millrace/train-trigger", "y"}}, `request "y"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := w.handle(w.event(c.typ, "/test", c.subject, c.data))
			if function.Status(err) != 400 || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want 400 and %q", err, c.says)
			}
		})
	}
	// Asked for by hand.
	w.must(w.event(events.TrainingCompleted, "/millrace/training", shop, map[string]any{"model": shop, "version": "1", "request": request{"/millrace/training/flags", "1"}}))
	w.want("at the end", []string{"train"}, []string{"training.requested"}, "")
}
