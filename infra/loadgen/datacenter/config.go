// Package datacenter simulates the servers and services of a datacenter: what their
// metrics are at any time, and which anomalies are in them.
//
// A Sim is a pure function of its Config: a reading follows from the entity and the
// time asked for, and from nothing that was asked before. So history and the present
// are of the same servers, at whatever steps they are read; a run can be taken up
// anywhere; and what is wrong at a time, the ground truth, can be asked for as well.
// Nothing here reads a clock.
//
// The metrics follow the day and the week; power and temperature follow the work. The
// parts of the noise change over minutes and hours, not only from reading to reading.
//
// The package lies here, and not in an internal folder, so that the tests and the
// evaluation of detectors can read the same servers without a broker between.
package datacenter

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Type is a kind of anomaly.
type Type uint8

// The kinds. Those before LatencySpike befall servers, the others services.
const (
	CPUSpike Type = iota
	MemoryLeak
	TemperatureHigh
	PowerSurge
	NetworkSaturation
	DiskIOBottleneck
	LatencySpike
	ErrorBurst
	types
)

var typeNames = [types]string{"cpu_spike", "memory_leak", "temperature_high", "power_surge",
	"network_saturation", "disk_io_bottleneck", "latency_spike", "error_burst"}

func (t Type) String() string { return typeNames[t] }

// ParseType is the inverse of String.
func ParseType(name string) (Type, bool) {
	i := slices.Index(typeNames[:], name)
	return Type(max(i, 0)), i >= 0
}

// Types returns all kinds.
func Types() []Type {
	all := make([]Type, types)
	for i := range all {
		all[i] = Type(i)
	}
	return all
}

// ofServices tells whom an anomaly of this kind befalls.
func (t Type) ofServices() bool { return t >= LatencySpike }

// Metrics names the metrics that an anomaly of this kind changes, the one that it
// changes most first.
func (t Type) Metrics() []string { return slices.Clone(typeMetrics[t]) }

var typeMetrics = [types][]string{
	CPUSpike:          {"cpu_usage_percent", "cpu_temperature_celsius", "power_consumption_watts"},
	MemoryLeak:        {"memory_usage_percent", "memory_available_gb"},
	TemperatureHigh:   {"cpu_temperature_celsius", "power_consumption_watts"},
	PowerSurge:        {"power_consumption_watts", "cpu_usage_percent"},
	NetworkSaturation: {"network_rx_mbps", "network_tx_mbps"},
	DiskIOBottleneck:  {"disk_read_mbps", "disk_write_mbps"},
	LatencySpike:      {"response_time_p50_ms", "response_time_p95_ms", "response_time_p99_ms"},
	ErrorBurst:        {"error_rate_percent", "error_count"},
}

// Config decides everything.
type Config struct {
	// Seed decides the entities, their noise and their anomalies.
	Seed uint64
	// Servers and Services are how many there are.
	Servers, Services int
	// Interval is the time between two readings of an entity. The length of anomalies
	// is in these, 30 to 120 of a server's and 20 to 90 of a service's, so it decides
	// on them also where a Sim is read in other steps, as for history.
	Interval time.Duration
	// AnomalyProbability is that of an anomaly to begin at an entity that has none, at
	// one interval.
	AnomalyProbability float64
	// Anomalies are the kinds that occur. Where none of a side's is among them, that
	// side has no anomalies.
	Anomalies []Type
	// LiveFrom ends the history. Before it, anomalies are an entity's state for at most
	// HistoryShare of the time, so that a model of what is normal can be made of it. The
	// zero time is for no history.
	LiveFrom     time.Time
	HistoryShare float64
	// Drift changes how the servers behave, without anything being wrong.
	Drift Drift
}

// Drift is a change for good.
type Drift struct {
	Kind DriftKind
	// At is when it begins, Over how long it takes to be whole; 0 is at once.
	At   time.Time
	Over time.Duration
	// Size is by how much, as a share: 0.3 is 30 percent more.
	Size float64
}

// DriftKind says what changes.
type DriftKind uint8

const (
	// NoDrift leaves all as it is.
	NoDrift DriftKind = iota
	// PowerDrift lets the same work take more power: what a model knows of power is
	// wrong from then on, though nothing that it is told looks different.
	PowerDrift
	// WorkloadDrift brings more work: processors, disks, networks and services have
	// more to do, and power and temperature follow as they always did.
	WorkloadDrift
	// CoolingDrift lets the same work make processors hotter.
	CoolingDrift
	driftKinds
)

var driftNames = [driftKinds]string{"none", "power", "workload", "cooling"}

func (k DriftKind) String() string { return driftNames[k] }

// ParseDriftKind is the inverse of String.
func ParseDriftKind(name string) (DriftKind, bool) {
	i := slices.Index(driftNames[:], name)
	return DriftKind(max(i, 0)), i >= 0
}

// factor is what the things that drift are multiplied by.
func (d *Drift) factor(kind DriftKind, t int64) float64 {
	if d.Kind != kind {
		return 1
	}
	since := t - d.At.UnixNano()
	switch {
	case since < 0:
		return 1
	case since >= int64(d.Over):
		return 1 + d.Size
	}
	return 1 + d.Size*float64(since)/float64(d.Over)
}

// DefaultHistoryShare is the largest share of an entity's history in anomaly.
const DefaultHistoryShare = 0.02

// Sets are the two sets of configurations: h, the newer with larger numbers, and s.
func Sets() []string { return []string{"h", "s"} }

// Names are the configurations of a set.
func Names() []string {
	names := make([]string, len(configs))
	for i, c := range configs {
		names[i] = c.name
	}
	return names
}

type numbers struct {
	servers, services int
	interval          time.Duration
	probability       float64
}

var configs = []struct {
	name    string
	h, s    numbers
	enabled []Type // nil is all
}{
	{"normal", numbers{100, 25, 5 * time.Second, 0.002}, numbers{10, 5, time.Second, 0.02}, nil},
	{"chaos", numbers{150, 40, time.Second, 0.08}, numbers{15, 8, 500 * time.Millisecond, 0.15}, nil},
	{"temperature", numbers{80, 20, 5 * time.Second, 0.01}, numbers{10, 5, time.Second, 0.10}, []Type{TemperatureHigh, CPUSpike}},
	{"network", numbers{120, 30, 800 * time.Millisecond, 0.03}, numbers{12, 6, 800 * time.Millisecond, 0.08}, []Type{NetworkSaturation, LatencySpike, ErrorBurst}},
	{"production", numbers{300, 60, 10 * time.Second, 0.001}, numbers{20, 12, time.Second, 0.01}, nil},
	{"dev", numbers{5, 3, 2 * time.Second, 0.02}, numbers{3, 2, 2 * time.Second, 0.05}, nil},
}

// Named returns a configuration of a set, with seed 1.
func Named(name, set string) (Config, error) {
	if !slices.Contains(Sets(), set) {
		return Config{}, fmt.Errorf("there is no set %q of configurations: %q", set, Sets())
	}
	for _, c := range configs {
		if c.name != name {
			continue
		}
		n, enabled := c.h, c.enabled
		if set == "s" {
			n = c.s
		}
		if enabled == nil {
			enabled = Types()
		}
		return Config{Seed: 1, Servers: n.servers, Services: n.services, Interval: n.interval,
			AnomalyProbability: n.probability, Anomalies: slices.Clone(enabled), HistoryShare: DefaultHistoryShare}, nil
	}
	return Config{}, fmt.Errorf("there is no configuration %q: %q", name, Names())
}

func (c *Config) check() error {
	switch {
	case c.Servers < 1 || c.Services < 0:
		return fmt.Errorf("at least 1 server and 0 services are needed, got %d and %d", c.Servers, c.Services)
	case c.Interval < time.Millisecond:
		return fmt.Errorf("the interval must be at least 1ms, got %s", c.Interval)
	case !(c.AnomalyProbability >= 0 && c.AnomalyProbability <= 1):
		return fmt.Errorf("the anomaly probability must be between 0 and 1, got %v", c.AnomalyProbability)
	case !(c.HistoryShare >= 0 && c.HistoryShare <= 1):
		return fmt.Errorf("the share of anomalies in history must be between 0 and 1, got %v", c.HistoryShare)
	case !(c.Drift.Size > -1) || math.IsInf(c.Drift.Size, 0):
		return fmt.Errorf("the size of the drift must be above -1, got %v", c.Drift.Size)
	case c.Drift.Over < 0:
		return fmt.Errorf("the drift cannot take %s", c.Drift.Over)
	case c.Drift.Kind >= driftKinds:
		return errors.New("the kind of drift is not known")
	case c.Drift.Kind != NoDrift && c.Drift.At.IsZero():
		return errors.New("a drift needs a time")
	}
	for _, t := range c.Anomalies {
		if t >= types {
			return fmt.Errorf("there is no anomaly type %d", t)
		}
	}
	return nil
}
