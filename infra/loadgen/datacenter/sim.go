package datacenter

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// ServerMetrics and ServiceMetrics are the names of the values of a reading, in their
// order, which is that of the stream contracts.
var (
	ServerMetrics = [...]string{"cpu_usage_percent", "memory_usage_percent", "memory_available_gb", "disk_usage_percent",
		"disk_read_mbps", "disk_write_mbps", "network_rx_mbps", "network_tx_mbps", "cpu_temperature_celsius", "power_consumption_watts"}
	ServiceMetrics = [...]string{"request_rate_per_sec", "response_time_p50_ms", "response_time_p95_ms", "response_time_p99_ms",
		"error_rate_percent", "error_count", "active_connections", "queue_depth"}
)

// decimals of the values as they are written.
var (
	serverDecimals  = [len(ServerMetrics)]uint8{2, 2, 2, 2, 2, 2, 2, 2, 1, 1}
	serviceDecimals = [len(ServiceMetrics)]uint8{2, 2, 2, 2, 3, 0, 0, 0}
)

// ServerReading is what a server's sensors show at a time, rounded as it is written.
type ServerReading struct {
	Time               time.Time
	Server, Rack, Zone string
	// Values are indexed as ServerMetrics.
	Values [len(ServerMetrics)]float64
	// Anomaly is what the reading is part of, nil if all is well. It is valid until the
	// next reading.
	Anomaly *Episode
}

// ServiceReading is what a service says of itself at a time.
type ServiceReading struct {
	Time            time.Time
	Service, Server string // Server is the host
	Endpoint        string
	Values          [len(ServiceMetrics)]float64
	Anomaly         *Episode
}

// Sim answers what the metrics are. It is not safe for concurrent use; another of the
// same Config gives the same readings.
type Sim struct {
	cfg      Config
	servers  []server
	services []service
	racks    []wave
}

// Racks and zones. Racks 1 to 3 are in the first zone.
var (
	racks = [...]string{"R01", "R02", "R03", "R04", "R05"}
	zones = [...]string{"marseille-1", "marseille-2"}
	bases = [...]string{"api-gateway", "user-service", "product-service", "order-service", "payment-service",
		"notification-service", "cache-redis", "database-primary", "search-engine"}
	endpoints = [...]string{"/api/users", "/api/products", "/api/orders", "/health"}
)

type server struct {
	key                       uint64
	id                        string
	rack                      int
	cpu, memory, disk         float64 // percent, on average
	temperature, power        float64
	gigabytes                 float64
	swing, shift              float64 // of the day
	watts, heat               float64 // a percent of CPU
	read, write, rx, tx       float64 // MB/s or Mbit/s a percent of CPU
	slow, quick, mem, full    wave
	warm, draw, io, net, side wave
	schedule                  schedule
}

type service struct {
	key                                       uint64
	name, host                                string
	rate, latency, errors, connections, queue float64
	tail, far                                 float64
	shift                                     float64
	demand, speed, wrong, crowd               wave
	schedule                                  schedule
}

// New checks the configuration and prepares the entities.
func New(c Config) (*Sim, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Sim{cfg: c}
	root := mix(c.Seed, 0x6461746163656e74)
	for i := range racks {
		s.racks = append(s.racks, newWave(mix(root, 3), uint64(i), time.Hour))
	}
	for i := range c.Servers {
		key := mix(mix(root, 1), uint64(i))
		n := func(stream uint64, low, high float64) float64 { return between(mix(key, stream), low, high) }
		v := server{key: key, id: fmt.Sprintf("srv-%03d", i+1), rack: int(mix(key, 20) % uint64(len(racks)))}
		// Newer servers have more memory and take more power.
		generation := float64(mix(key, 21) % 3)
		v.gigabytes = 32 * (generation + 1)
		v.cpu, v.memory, v.disk = n(1, 20, 40), n(2, 30, 50), n(3, 40, 70)
		v.temperature = n(4, 45, 55)
		v.power = 205 + 35*generation + n(5, 0, 15)
		v.watts, v.heat = 1.5+0.25*generation, n(6, 0.2, 0.3)
		v.swing, v.shift = n(7, 0.45, 1), n(8, -1.5, 1.5)
		v.read, v.write = n(9, 8, 16)/15, n(10, 6, 12)/15
		v.rx, v.tx = n(11, 35, 75)/10, n(12, 35, 75)/10
		v.slow, v.quick = newWave(key, 30, 40*time.Minute), newWave(key, 31, 90*time.Second)
		v.mem, v.full = newWave(key, 32, 2*time.Hour), newWave(key, 33, 12*time.Hour)
		v.warm, v.draw = newWave(key, 34, 15*time.Minute), newWave(key, 35, 10*time.Minute)
		v.io, v.net, v.side = newWave(key, 36, 3*time.Minute), newWave(key, 37, 5*time.Minute), newWave(key, 38, 4*time.Minute)
		v.schedule = newSchedule(&c, key, v.id, false)
		s.servers = append(s.servers, v)
	}
	for i := range c.Services {
		key := mix(mix(root, 2), uint64(i))
		n := func(stream uint64, low, high float64) float64 { return between(mix(key, stream), low, high) }
		v := service{key: key, name: fmt.Sprintf("%s-%d", bases[i%len(bases)], i+1),
			host: s.servers[mix(key, 20)%uint64(c.Servers)].id}
		v.rate, v.latency, v.errors = n(1, 100, 1000), n(2, 10, 50), n(3, 0.1, 1)
		v.connections, v.queue = n(4, 60, 300), n(5, 5, 30)
		v.tail, v.far, v.shift = n(6, 2.2, 3.2), n(7, 1.6, 2.2), n(8, -1, 1)
		v.demand, v.speed = newWave(key, 30, 20*time.Minute), newWave(key, 31, 10*time.Minute)
		v.wrong, v.crowd = newWave(key, 32, 15*time.Minute), newWave(key, 33, 10*time.Minute)
		v.schedule = newSchedule(&c, key, v.name, true)
		s.services = append(s.services, v)
	}
	return s, nil
}

// Config returns what the Sim was made of.
func (s *Sim) Config() Config { return s.cfg }

// Server reads server i, from 0.
func (s *Sim) Server(i int, at time.Time, r *ServerReading) {
	v, t := &s.servers[i], at.UnixNano()
	white := mix(v.key, uint64(t))
	w := func(stream uint64) float64 { return normal(mix(white, stream)) }

	load := 1 + v.swing*(0.75*activity(t, v.shift)-0.25)
	load *= s.cfg.Drift.factor(WorkloadDrift, t)
	// What heats is the work of the last minutes, without its short peaks.
	steady := v.cpu*load + 1.5*v.slow.at(t)
	busy := steady + 1.2*v.quick.at(t)
	cpu := busy + 1.2*w(1)
	memory := v.memory*(1+0.12*(load-1)) + 0.8*v.mem.at(t) + 0.4*w(2)
	ambient := 0.8*s.racks[v.rack].at(t) + 1.2*activity(t, -1)
	temperature := v.temperature + v.heat*(steady-v.cpu)*s.cfg.Drift.factor(CoolingDrift, t) + ambient + 0.4*v.warm.at(t) + 0.4*w(3)
	if s.cfg.Drift.Kind == CoolingDrift {
		temperature += 20 * (s.cfg.Drift.factor(CoolingDrift, t) - 1)
	}
	power := v.power + v.watts*(cpu-v.cpu) + 0.9*(temperature-v.temperature) + 1.5*v.draw.at(t) + 1.5*w(4)
	power *= s.cfg.Drift.factor(PowerDrift, t)
	transfer, traffic, other := 0.18*v.io.at(t), 0.15*v.net.at(t), 0.15*v.side.at(t)
	read := busy * v.read * math.Exp(transfer+0.12*w(5))
	write := busy * v.write * math.Exp(transfer+0.12*w(6))
	rx := busy * v.rx * math.Exp(traffic+0.1*w(7))
	tx := busy * v.tx * math.Exp(other+0.1*w(8))
	disk := v.disk + 1.5*v.full.at(t) + 2*activity(t, -6) + 0.05*w(9)

	r.Anomaly = v.schedule.at(t)
	if e := r.Anomaly; e != nil {
		m := func(stream uint64, low, high float64) float64 { return between(mix(white, 40+stream), low, high) }
		switch e.Type {
		case CPUSpike:
			cpu *= m(1, 2.5, 4)
			temperature *= m(2, 1.3, 1.6)
			power *= m(3, 1.4, 1.8)
		case MemoryLeak:
			memory *= 1 + (between(mix(e.key, 5), 1.5, 2.2)-1)*e.within(t)
		case TemperatureHigh:
			temperature *= m(1, 1.5, 1.9)
			power *= m(2, 1.2, 1.4)
		case PowerSurge:
			power *= m(1, 2, 3)
			cpu *= m(2, 1.3, 1.6)
		case NetworkSaturation:
			rx *= m(1, 3, 5)
			tx *= m(2, 3, 5)
		case DiskIOBottleneck:
			read *= m(1, 3, 6)
			write *= m(2, 3, 6)
		}
	}
	memory = clamp(memory, 5, 99.9)
	r.Time, r.Server, r.Rack, r.Zone = at, v.id, racks[v.rack], zones[v.rack/3]
	r.Values = [...]float64{clamp(cpu, 0.1, 99.9), memory, v.gigabytes * (1 - memory/100), clamp(disk, 0, 100),
		read, write, rx, tx, clamp(temperature, 30, 95), max(50, power)}
	for i := range r.Values {
		r.Values[i] = round(r.Values[i], serverDecimals[i])
	}
}

// Service reads service i, from 0.
func (s *Sim) Service(i int, at time.Time, r *ServiceReading) {
	v, t := &s.services[i], at.UnixNano()
	white := mix(v.key, uint64(t))
	w := func(stream uint64) float64 { return normal(mix(white, stream)) }

	load := (0.85 + 0.65*activity(t, v.shift)) * math.Exp(0.06*v.demand.at(t)) * s.cfg.Drift.factor(WorkloadDrift, t)
	rate := v.rate * load * math.Exp(0.05*w(1))
	p50 := v.latency * (1 + 0.2*(load-1)) * math.Exp(0.05*v.speed.at(t)+0.03*w(2))
	wrong := v.errors * math.Exp(0.12*v.wrong.at(t)+0.15*w(3))

	r.Anomaly = v.schedule.at(t)
	if e := r.Anomaly; e != nil {
		switch e.Type {
		case LatencySpike:
			p50 *= between(mix(white, 41), 5, 15)
		case ErrorBurst:
			wrong *= between(mix(white, 42), 10, 50)
		}
	}
	wrong = round(min(50, wrong), 3)
	p95 := p50 * v.tail * math.Exp(0.07*w(4))
	p99 := p95 * v.far * math.Exp(0.07*w(5))
	crowd := math.Exp(0.08 * v.crowd.at(t))
	r.Time, r.Service, r.Server, r.Endpoint = at, v.name, v.host, endpoints[mix(white, 6)%uint64(len(endpoints))]
	r.Values = [...]float64{rate, p50, p95, max(p95, p99), wrong, math.Floor(rate * wrong / 100),
		math.Round(v.connections * load * crowd * math.Exp(0.05*w(7))), math.Round(v.queue * load * crowd * math.Exp(0.15*w(8)))}
	for i := range r.Values {
		r.Values[i] = round(r.Values[i], serviceDecimals[i])
	}
}

// Episodes returns the anomalies that touch a span of time, by their start. Read in
// steps that are longer than an anomaly, it may have no reading.
func (s *Sim) Episodes(from, until time.Time) []Episode {
	var list []Episode
	for i := range s.servers {
		list = s.servers[i].schedule.between(list, from, until)
	}
	for i := range s.services {
		list = s.services[i].schedule.between(list, from, until)
	}
	slices.SortStableFunc(list, func(a, b Episode) int { return a.Start.Compare(b.Start) })
	return list
}

func clamp(x, low, high float64) float64 { return min(max(x, low), high) }

var powers = [...]float64{1, 10, 100, 1000}

func round(x float64, decimals uint8) float64 {
	return math.Round(x*powers[decimals]) / powers[decimals]
}
