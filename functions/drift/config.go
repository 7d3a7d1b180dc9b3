package main

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/drift"
)

//go:embed models.yaml
var embeddedModels []byte

// plan is a file of what is watched; models.yaml says what its fields mean.
type plan struct {
	Every      time.Duration `yaml:"every"`
	Window     time.Duration `yaml:"window"`
	Hold       int           `yaml:"hold"`
	MinRows    int           `yaml:"minRows"`
	MaxRows    int           `yaml:"maxRows"`
	Distance   float64       `yaml:"distance"`
	P          float64       `yaml:"p"`
	Share      float64       `yaml:"share"`
	Models     []*watched    `yaml:"models"`
	Streams    bool          `yaml:"streams"`
	StreamDays int           `yaml:"streamDays"`
}

// watched is a model, or a stream.
type watched struct {
	Name       string            `yaml:"name"`
	Table      string            `yaml:"table"`
	Time       string            `yaml:"time"`
	Key        []string          `yaml:"key"`
	Entity     string            `yaml:"entity"`
	Where      map[string]string `yaml:"where"`
	Ignore     map[string]string `yaml:"ignore"`
	Seasonal   bool              `yaml:"seasonal"`
	Scores     bool              `yaml:"scores"`
	Classifier bool              `yaml:"classifier"`
	Regression bool              `yaml:"regression"`
	Fallback   string            `yaml:"fallback"`

	// metrics are set for a stream: the columns that are watched.
	metrics []string
}

// kind tells models from streams, for Triggers.
func (w *watched) kind() string {
	if w.metrics != nil {
		return "stream"
	}
	return "model"
}

func (p *plan) limits() drift.Limits {
	return drift.Limits{P: p.P, Distance: p.Distance, Share: p.Share}
}

// openPlan reads the plan of a file, or the one that ships, and adds the streams.
func openPlan(c *Config, contracts []*contract.Contract) (*plan, error) {
	text, name := embeddedModels, "embedded models"
	if c.Models != "" {
		var err error
		if text, err = os.ReadFile(c.Models); err != nil {
			return nil, fmt.Errorf("DRIFT_MODELS: %w", err)
		}
		name = c.Models
	}
	p := &plan{}
	if err := yaml.UnmarshalWithOptions(text, p, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("reading %s: %s", name, yaml.FormatError(err, false, true))
	}
	p.Every, p.Window, p.Hold = cmp.Or(c.Every, p.Every), cmp.Or(c.Window, p.Window), cmp.Or(c.Hold, p.Hold)
	p.MinRows = cmp.Or(c.MinRows, p.MinRows)
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if p.Streams {
		for _, c := range contracts {
			if w := stream(c); w != nil {
				p.Models = append(p.Models, w)
			}
		}
	}
	return p, nil
}

// stream is what is watched of a contract, nil if it is nothing.
func stream(c *contract.Contract) *watched {
	w := &watched{Name: "stream/" + c.Name, Table: "public." + c.Table, Time: c.EventTime, Key: c.NaturalKey, Seasonal: true, Entity: cmp.Or(c.Entity, c.Key)}
	for _, f := range c.Metrics() {
		w.metrics = append(w.metrics, f.Name)
	}
	if c.Table == "" || w.metrics == nil {
		return nil
	}
	return w
}

var (
	modelNames = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
	folders    = regexp.MustCompile(`^[a-z0-9_-]*$`)
)

func (p *plan) check() error {
	switch {
	case p.Every < time.Second || p.Every > 24*time.Hour:
		return fmt.Errorf("every: %s: must be from 1s to 24h", p.Every)
	case p.Window < p.Every:
		return fmt.Errorf("window: %s: must be at least every, %s", p.Window, p.Every)
	case p.Hold < 1 || p.Hold > 1000:
		return fmt.Errorf("hold: %d: must be from 1 to 1000", p.Hold)
	case p.MinRows < 1 || p.MaxRows < p.MinRows || p.MaxRows > 1_000_000:
		return fmt.Errorf("minRows, maxRows: %d and %d: must be from 1, ascending, to 1000000", p.MinRows, p.MaxRows)
	case p.Streams && (p.StreamDays < 1 || p.StreamDays > 90):
		return fmt.Errorf("streamDays: %d: must be from 1 to 90", p.StreamDays)
	}
	if err := p.limits().Check(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, w := range p.Models {
		if err := w.check(); err != nil {
			return fmt.Errorf("models[%d] (%s): %w", i, w.Name, err)
		}
		if seen[w.Name] {
			return fmt.Errorf("models[%d]: name: %q is given twice", i, w.Name)
		}
		seen[w.Name] = true
	}
	return nil
}

func (w *watched) check() error {
	switch {
	case !modelNames.MatchString(w.Name):
		return fmt.Errorf("name: %q must be letters, digits, _, . and -", w.Name)
	case strings.Count(w.Table, ".") != 1:
		return fmt.Errorf("table: %q: want schema.table", w.Table)
	case w.Time == "":
		return errors.New("time: required")
	case len(w.Key) == 0:
		return errors.New("key: required")
	case (w.Classifier || w.Regression) && !w.Scores:
		return errors.New("classifier, regression: need scores")
	case w.Classifier && w.Regression:
		return errors.New("classifier, regression: only one may be set")
	case !folders.MatchString(w.Fallback):
		return fmt.Errorf("fallback: %q is no folder's name", w.Fallback)
	}
	return nil
}

// table is the table's name as SQL.
func (w *watched) table() string {
	schema, name, _ := strings.Cut(w.Table, ".")
	return pgx.Identifier{schema, name}.Sanitize()
}

func quote(column string) string { return pgx.Identifier{column}.Sanitize() }
