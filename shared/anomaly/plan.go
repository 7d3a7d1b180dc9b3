package anomaly

import (
	"math"
	"time"
)

// Plan is how the readings of one stream contract are judged. It does not change after
// it was made and is safe for concurrent use.
type Plan struct {
	Contract   string
	EntityType string
	// Metrics are the names of the values of a Reading, in order.
	Metrics []string
	// Channels are the kinds of anomalies that an entity can have, each of which begins
	// and ends by itself.
	Channels []Channel
	Limits   Limits
	Training Training
	// Learnt says of which metrics models are made, Floors from which deviation on they
	// vary at all. History is how far back models look.
	Learnt  []bool
	Floors  []float64
	History time.Duration
	// Forest is the name of the forest's model, "" without one.
	Forest string

	hashes []uint32 // of the channels' types
	fields binding
}

// Channel is one kind of anomaly: of one metric and one detector.
type Channel struct {
	// Type is the anomaly_type.
	Type     string
	Metric   string
	Detector Detector
	// Rule says that any distance but 0 is an alarm.
	Rule bool
	// Calm leaves out the warning band.
	Calm bool
}

// Limits decide when distances are an anomaly, the same for all metrics, since a
// distance already counts in what is usual for the metric.
type Limits struct {
	// Alarm is the distance from which a reading is odd; AlarmPoints of AlarmOf readings
	// that follow each other have to be, on one side, the last of them too.
	Alarm                float64
	AlarmPoints, AlarmOf int
	// Warn is a smaller distance that is odd when WarnPoints readings in a row keep it,
	// on one side.
	Warn       float64
	WarnPoints int
	// Clear is how many readings in a row have to be nearer than Usual for an anomaly to
	// be over. Usual is Warn without the margin that the warning has over what usual
	// readings come to: where what is odd varies much, some of it does not get to Warn.
	Clear int
	Usual float64
	// CoolDown is for how many readings after that nothing new is said, unless it is
	// more severe.
	CoolDown int
	// Follow is the time in which the level comes nearer to what the readings are, to
	// a third of the way. What lasts for days becomes the usual.
	Follow time.Duration
	// Apart is how far in time readings that follow each other may be.
	Apart time.Duration
}

// DefaultLimits are those of contracts that say nothing else. The score is a fifth of
// the distance, so that an alarm is at least high, and a warning low or medium.
func DefaultLimits() Limits {
	return Limits{Alarm: 3, AlarmPoints: 1, AlarmOf: 1, Warn: 2, WarnPoints: 3, Clear: 5, Usual: 2, CoolDown: 36,
		Follow: 2 * time.Hour, Apart: 30 * time.Minute}
}

// scoreRange is the distance of the score 1.
const scoreRange = 5

// Reading is one reading of an entity.
type Reading struct {
	Time time.Time
	// Key tells the readings of one time apart: a hash of the natural key.
	Key    uint32
	Entity string
	// Values are indexed as the plan's Metrics. What is not there is NaN.
	Values []float64
}

// Entity is what is known of an entity beside its state: the models of the metrics,
// indexed as the plan's Metrics, nil where there is none yet.
type Entity struct {
	Models []*Model
}

// Judgement is what a detector says of one reading.
type Judgement struct {
	// Known is false if the detector cannot say anything: in the warm-up, or without
	// the value.
	Known bool
	// Distance is how odd the reading is, signed, in the unit of Limits.
	Distance float64

	Actual, Expected, Trend, Seasonal, Threshold float64
	// Model is what was judged by, for people.
	Model string
	// Trained is when that was made.
	Trained time.Time
	// Level is what the channel is to keep as its level if the reading is its newest.
	Level float64
}

// Detector judges single readings. It has no state but the level that is handed to it,
// which is NaN at first.
type Detector interface {
	Judge(l *Limits, e *Entity, r *Reading, level float64, since time.Duration) Judgement
}

// Expectation judges a metric by its Model: what is expected of the time, from a
// level that follows the readings.
type Expectation struct {
	// Metric is the index of the value.
	Metric int
}

// Judge implements Detector.
func (d Expectation) Judge(l *Limits, e *Entity, r *Reading, level float64, since time.Duration) Judgement {
	value := r.Values[d.Metric]
	if len(e.Models) == 0 || math.IsNaN(value) {
		return Judgement{Level: level}
	}
	m := e.Models[d.Metric]
	if m == nil {
		return Judgement{Level: level}
	}
	if math.IsNaN(level) {
		level = m.Level
	}
	j := Judgement{Known: true, Actual: value, Trend: level, Seasonal: m.SeasonAt(r.Time), Threshold: l.Alarm, Model: "level", Trained: m.Trained}
	if m.Seasonal() {
		j.Model = "seasonal"
	}
	j.Expected = j.Trend + j.Seasonal
	residual := value - j.Expected
	j.Distance = m.Distance(residual)
	j.Level = level
	if since > 0 {
		// A reading that is far off pulls no more than one at the warning, and after a
		// gap no more than after a step.
		residual = min(max(residual, -l.Warn*m.Down), l.Warn*m.Up)
		if math.Abs(j.Distance) >= l.Usual {
			// What is odd becomes the usual only if it stays for long.
			residual /= oddPull
		}
		j.Level += residual * -math.Expm1(-float64(min(since, m.Step))/float64(l.Follow))
	}
	return j
}

// Rule is a limit that the contract states.
type Rule struct {
	Metric int
	// Limit is what the value must not be above, or below if Below is set.
	Limit float64
	Below bool
	// Score is that of the rule's severity.
	Score float64
}

// Judge implements Detector.
func (d Rule) Judge(_ *Limits, _ *Entity, r *Reading, level float64, _ time.Duration) Judgement {
	value := r.Values[d.Metric]
	if math.IsNaN(value) {
		return Judgement{Level: level}
	}
	j := Judgement{Known: true, Actual: value, Expected: d.Limit, Threshold: d.Limit, Model: "rule", Level: level}
	switch {
	case !d.Below && value > d.Limit:
		j.Distance = d.Score * scoreRange
	case d.Below && value < d.Limit:
		j.Distance = -d.Score * scoreRange
	}
	return j
}

// ScoreOf is the score of a severity, for rules.
func ScoreOf(severity string) (score float64, ok bool) {
	switch severity {
	case Critical:
		return 0.9, true
	case High:
		return 0.7, true
	case Medium:
		return 0.5, true
	case Low:
		return 0.3, true
	}
	return 0, false
}

// DefaultTraining is that of contracts that say nothing else.
func DefaultTraining() Training {
	return Training{Step: 5 * time.Minute, Period: 24 * time.Hour, Least: 72}
}
