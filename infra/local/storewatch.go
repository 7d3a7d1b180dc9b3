package main

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-dev/millrace/shared/health"
)

const (
	// pingEvery is how often a store is asked whether it answers.
	pingEvery = time.Second
	// pingPatience is how long it may take to answer. A machine that has much else to do
	// is slower than one would think.
	pingPatience = 5 * time.Second
	// newsFor is how long it is told that a store is well again.
	newsFor = 2 * time.Minute
)

// watchStore asks a store whether it answers until ctx ends. What fails once is asked
// again at once before it is believed: a connection may have been lost for other reasons.
func (c *collector) watchStore(ctx context.Context, name string, ping func(context.Context) error) {
	s := health.Of(name)
	ask := func() error {
		ctx, cancel := context.WithTimeout(ctx, pingPatience)
		defer cancel()
		return ping(ctx)
	}
	for ctx.Err() == nil {
		asked := time.Now()
		err := ask()
		if state, known := s.State(); err != nil && (!known || state.Up) {
			err = ask()
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && s.FailedSince(asked, err):
			c.event(name, "is away: "+err.Error(), true)
		case err == nil && s.Well():
			state, _ := s.State()
			c.event(name, fmt.Sprintf("is well again, away for %s", spanText(seconds(state.AwaySeconds))), false)
		}
		select {
		case <-time.After(pingEvery):
		case <-ctx.Done():
		}
	}
}

// stores are all that were asked.
func (c *collector) stores() []health.State {
	all := []health.State{}
	for _, name := range []string{health.Kafka, health.S3, health.Redis, health.Postgres} {
		if state, known := health.Of(name).State(); known {
			all = append(all, state)
		}
	}
	return all
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// storeNews is what is worth a line of the screen: who is away, and who was until
// just now.
func storeNews(s Status) (away, back []string) {
	for _, store := range s.Stores {
		at := store.Since.Local().Format("15:04:05")
		switch {
		case !store.Up:
			away = append(away, fmt.Sprintf(" %s is away since %s: %s", store.Name, at, store.Error))
		case store.AwaySeconds > 0 && s.Time.Sub(store.Since) < newsFor:
			back = append(back, fmt.Sprintf(" %s is well again since %s, away for %s", store.Name, at, spanText(seconds(store.AwaySeconds))))
		}
	}
	return away, back
}

// spanText is how long something took.
func spanText(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return fmt.Sprintf("%d h", int(d.Hours()))
}
