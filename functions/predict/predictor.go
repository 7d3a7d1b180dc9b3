package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/millrace-dev/millrace/shared/online"
)

// lookup reads features of entities from the online store.
type lookup interface {
	Get(ctx context.Context, keys []online.Key) ([]online.Row, error)
}

// predictor is the handler and what serves the function's own routes.
type predictor struct {
	function   string
	live       *slot
	canary     *slot // nil if there is none
	shadow     *slot // nil if there is none
	percent    uint64
	turn       atomic.Uint64
	store      lookup // nil without an online store
	eventTypes []string
	config     *Config
	counts     *instruments
	shadowed   chan shadowJob
	payloads   *payloads // nil if requests and answers are not sent on
}

func newPredictor(c *Config, store lookup) (*predictor, error) {
	counts, err := newInstruments()
	if err != nil {
		return nil, err
	}
	p := &predictor{function: c.Function.Name, store: store, percent: uint64(c.CanaryPercent), eventTypes: c.EventTypes,
		config: c, counts: counts, shadowed: make(chan shadowJob, 256)}
	for _, s := range []struct {
		role, variable, uri, alias string
		into                       **slot
	}{
		{live, "MODEL_URI", c.URI, c.Alias, &p.live},
		{canary, "CANARY_URI", c.CanaryURI, c.CanaryAlias, &p.canary},
		{shadow, "SHADOW_URI", c.ShadowURI, c.ShadowAlias, &p.shadow},
	} {
		if s.uri == "" && (s.alias == "" || c.Name == "") {
			continue
		}
		o, err := newOrigin(c, s.variable, s.uri, s.alias)
		if err != nil {
			return nil, err
		}
		*s.into = &slot{role: s.role, name: c.Name, origin: o, counts: counts}
	}
	if c.Cache != "" {
		p.live.kept = &kept{filepath.Clean(c.Cache), p.live.origin}
		p.live.standIns = append(p.live.standIns, p.live.kept)
	}
	if c.FallbackURI != "" {
		o, err := newPlace("MODEL_FALLBACK_URI", c.FallbackURI)
		if err != nil {
			return nil, err
		}
		p.live.standIns = append(p.live.standIns, o)
	}
	if c.Payloads != payloadsOff {
		if p.payloads, err = newPayloads(c, c.Function.Name, counts); err != nil {
			return nil, err
		}
	}
	if err := served(p.slots); err != nil {
		return nil, err
	}
	return p, nil
}

// slots are those that are configured.
func (p *predictor) slots() []*slot {
	return slices.DeleteFunc([]*slot{p.live, p.canary, p.shadow}, func(s *slot) bool { return s == nil })
}

// start loads the versions and keeps them up to date until ctx ends.
func (p *predictor) start(ctx context.Context) {
	for _, s := range p.slots() {
		go s.watch(ctx, p.config.Poll, p.config.Patience)
	}
	if p.shadow != nil {
		go p.cast(ctx)
	}
}

var errNoModel = errors.New("no model is loaded")

// ready tells whether there is a version to serve.
func (p *predictor) ready(context.Context) error {
	if p.live.current.Load() != nil {
		return nil
	}
	return p.noModel()
}

// noModel is the error of a request that came before a model was loaded, with what
// went wrong last.
func (p *predictor) noModel() error {
	if text := p.live.said.Load(); text != nil {
		return fmt.Errorf("%w: %s", errNoModel, *text)
	}
	return errNoModel
}

// pick chooses the version for a request: the canary's for its percentage of the
// numbers, spread evenly.
func (p *predictor) pick(number uint64) *version {
	if p.canary != nil && number*p.percent%100+p.percent >= 100 {
		if v := p.canary.current.Load(); v != nil {
			return v
		}
	}
	return p.live.current.Load()
}

// next chooses the version for the next request.
func (p *predictor) next() *version { return p.pick(p.turn.Add(1)) }

// pickFor chooses the version for an event: the same when it comes again.
func (p *predictor) pickFor(id string) *version {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails
	return p.pick(uint64(h.Sum32() % 100))
}

// serve predicts with a version, counts, and lets the shadow see it.
func (p *predictor) serve(ctx context.Context, v *version, in inputs) ([]float64, error) {
	out, err := v.predict(in)
	if err != nil {
		return nil, err
	}
	p.counts.predicted(ctx, v, out)
	if p.shadow != nil {
		select {
		case p.shadowed <- shadowJob{in, v, out}:
		default:
			p.counts.shadowDropped(ctx, in.count())
		}
	}
	return out, nil
}

// shadowJob is a request that was answered by a version with out.
type shadowJob struct {
	in  inputs
	by  *version
	out []float64
}

// cast lets the shadow predict what others have answered, one request after the
// other, until ctx ends.
func (p *predictor) cast(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-p.shadowed:
			v := p.shadow.current.Load()
			if v == nil {
				continue
			}
			out, err := v.predict(job.in)
			if err != nil || len(out) != len(job.out) {
				p.counts.shadowFailed(ctx, v, job.in.count())
				continue
			}
			p.counts.predicted(ctx, v, out)
			p.counts.compared(ctx, v, out, job.out)
		}
	}
}
