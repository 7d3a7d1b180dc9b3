package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/kafka"
)

// What is measured of the datacenter: readings of these entities, one every interval
// each.
const (
	metersTopic      = "datacenter-metrics"
	metersServers    = 160
	metersServices   = 40
	metersInterval   = 100 * time.Millisecond
	metersRate       = int((metersServers + metersServices) * time.Second / metersInterval)
	metersHistory    = 2 // days, in steps of five minutes
	metersAnomalies  = "0.004"
	detectedChannel  = "bench_detected"
	modelsPatience   = 5 * time.Minute // a tick comes every minute
	readingsPatience = 2 * time.Minute
)

var metersPart = e2ePart{title: "raw readings to their rows and to rows of anomalies", functions: "validate,store,detect,deadletter"}

// datacenter starts the runner with what takes readings, fills in a history, waits
// until detect has learnt from it, and then sends readings with anomalies as fast as
// they are due. It measures from the record of the reading that completes a detection:
// how many readings a detection needs is the detector's definition, and told apart.
func (b *bench) datacenter(ctx context.Context) (sections []section, err error) {
	p, err := b.startPlatform(ctx, metersPart)
	if err != nil {
		return nil, err
	}
	defer p.end(&err)
	db, err := p.database(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close(context.WithoutCancel(ctx)) }() // all of it has been read
	m := &meters{bench: b, platform: p, db: db}
	s := section{Title: "local runner, " + metersPart.title + ", producer on the same cores", Notes: []string{
		"rows/s: readings until all of them were stored and judged; CPU of store, detect and PostgreSQL a million readings;",
		"anomaly p50, p99, max: from the timestamp of the raw record that completed a detection to the notice of its row's commit;",
		"readings to detect: from the beginning of an anomaly to that record, which is what the detector waits for to be sure",
	}}
	history := fmt.Sprintf("history of %d servers and %d services, as fast as possible", metersServers, metersServices)
	b.log("datacenter: %s", history)
	r, _, err := m.phase(ctx, row{ID: "datacenter-history", Name: history}, "-backfill-days", strconv.Itoa(metersHistory), "-rate", "0", "-start", "now")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", history, err)
	}
	s.Rows = append(s.Rows, r)
	b.log("datacenter: waiting for detect to learn")
	if err := m.learnt(ctx); err != nil {
		return []section{s}, err
	}
	length := 4 * time.Duration(b.seconds*float64(time.Second))
	live := fmt.Sprintf("%s readings/s with anomalies for %v", thousands(int64(metersRate)), length)
	b.log("datacenter: %s", live)
	r, processes, err := m.phase(ctx, row{ID: "datacenter-live", Name: live}, "-rate", strconv.Itoa(metersRate), "-start", "now",
		"-count", strconv.Itoa(int(length.Seconds()*float64(metersRate))), "-anomaly-probability", metersAnomalies)
	if err != nil {
		return []section{s}, fmt.Errorf("%s: %w", live, err)
	}
	s.Rows = append(s.Rows, r)
	return []section{s, {Title: "the runner's processes in the last row above", Rows: processes}}, nil
}

// database connects to the runner's PostgreSQL.
func (p *platform) database(ctx context.Context) (*pgx.Conn, error) {
	text, err := os.ReadFile(filepath.Join(p.state, "env.json"))
	if err != nil {
		return nil, err
	}
	var env map[string]string
	if err := json.Unmarshal(text, &env); err != nil {
		return nil, fmt.Errorf("reading the runner's variables: %w", err)
	}
	return pgx.Connect(ctx, env["DATABASE_URL"])
}

// meters measures readings.
type meters struct {
	*bench
	platform *platform
	db       *pgx.Conn
	stored   uint64 // readings, of all phases
	number   int
}

// detected is the key of the row of an anomaly, and when its commit was noticed.
type detected struct {
	key  reading
	kind string
	at   time.Time
}

// reading names one: of whom, and of when, in microseconds since 1970.
type reading struct {
	entity string
	at     int64
}

// phase sends readings and waits until all were stored and judged.
func (m *meters) phase(ctx context.Context, r row, flags ...string) (row, []row, error) {
	program, err := m.program("loadgen")
	if err != nil {
		return r, nil, err
	}
	m.number++
	report, truth := filepath.Join(m.tmp, fmt.Sprintf("meters-%d.json", m.number)), filepath.Join(m.tmp, fmt.Sprintf("truth-%d.jsonl", m.number))
	cmd := exec.CommandContext(ctx, program, append([]string{"datacenter", "-brokers", m.platform.brokers, "-config", "normal", "-servers", strconv.Itoa(metersServers),
		"-services", strconv.Itoa(metersServices), "-interval", metersInterval.String(), "-progress", "0", "-report", report, "-truth", truth}, flags...)...)
	var failed bytes.Buffer
	cmd.Stderr = &failed

	listening, stop := context.WithCancel(ctx)
	defer stop()
	found := make(chan []detected, 1)
	if m.number > 1 {
		if err := m.listen(ctx); err != nil {
			return r, nil, err
		}
		go func() { found <- m.hear(listening) }()
	}
	before, err := treeUsage(m.platform.cmd.Process.Pid)
	if err != nil {
		return r, nil, err
	}
	own, machine, began := ownCPU(), machineCPU(), time.Now()
	if err := cmd.Run(); err != nil {
		return r, nil, fmt.Errorf("the load generator: %w\n%s", err, tail(failed.Bytes(), 5))
	}
	sending := time.Since(began)
	sent, err := delivered(report)
	if err != nil {
		return r, nil, err
	}
	took, err := m.drained(ctx, began)
	if err != nil {
		return r, nil, err
	}
	after, err := treeUsage(m.platform.cmd.Process.Pid)
	if err != nil {
		return r, nil, err
	}
	own, machine = ownCPU()-own, machineCPU()-machine
	stop()
	var list []detected
	if m.number > 1 {
		list = <-found
	}
	m.stored += sent
	if err := m.complete(ctx); err != nil {
		return r, nil, err
	}
	r.add("rows/s", float64(sent)/took.Seconds())
	r.add("sent/s", float64(sent)/sending.Seconds())
	cpu := func(name string) float64 { return perMillion(after[name].cpu-before[name].cpu, sent) }
	for _, name := range []string{"store", "detect", "postgres"} {
		r.add(name+" CPU s/M", cpu(name))
	}
	spent, loader := total(after).cpu-total(before).cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	r.add("all "+colCPU, perMillion(spent, sent))
	if err := m.latencies(ctx, &r, list, truth); err != nil {
		return r, nil, err
	}
	r.add(colPeak, float64(total(after).rss)/megabyte)
	r.add(colOthers, (machine-own-spent-loader).Seconds()/(took.Seconds()))
	var processes []row
	for _, name := range slices.Sorted(maps.Keys(after)) {
		one := row{Name: name}
		one.add(colCPU, cpu(name))
		one.add(colRSS, float64(after[name].rss)/megabyte)
		processes = append(processes, one)
	}
	return r, processes, nil
}

// listen lets the database tell of each row of an anomaly when it is committed.
func (m *meters) listen(ctx context.Context) error {
	_, err := m.db.Exec(ctx, `
		CREATE OR REPLACE FUNCTION public.`+detectedChannel+`() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			PERFORM pg_notify('`+detectedChannel+`', NEW.entity_id || ' ' || (extract(epoch FROM NEW."timestamp") * 1000000)::bigint || ' ' || NEW.anomaly_type);
			RETURN NULL;
		END $$;
		CREATE OR REPLACE TRIGGER `+detectedChannel+` AFTER INSERT ON public.anomalies FOR EACH ROW EXECUTE FUNCTION public.`+detectedChannel+`();
		LISTEN `+detectedChannel)
	if err != nil {
		return fmt.Errorf("listening for anomalies: %w", err)
	}
	return nil
}

// hear collects what the database tells until the context ends. It has the connection
// to itself.
func (m *meters) hear(ctx context.Context) (list []detected) {
	for {
		n, err := m.db.WaitForNotification(ctx)
		if err != nil {
			return list // the context has ended, or complete finds the connection broken
		}
		at := time.Now()
		parts := strings.SplitN(n.Payload, " ", 3)
		if micros, err := strconv.ParseInt(parts[1], 10, 64); err == nil {
			list = append(list, detected{reading{parts[0], micros}, parts[2], at})
		}
	}
}

// drained waits until nothing is on its way any more, and says how long that took.
func (m *meters) drained(ctx context.Context, began time.Time) (time.Duration, error) {
	var since time.Time // nothing was on its way
	for waiting := time.Now(); ; {
		status, err := m.platform.status(ctx)
		if err == nil && !status.empty() {
			since = time.Time{}
		} else if err == nil {
			if since.IsZero() {
				since = time.Now()
			}
			// From one part to the next nobody counts it.
			if time.Since(since) > time.Second {
				return since.Sub(began), nil
			}
		}
		if time.Since(waiting) > readingsPatience {
			return 0, fmt.Errorf("readings are still on their way after %s: %w", readingsPatience, cmp.Or(err, errBehind))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// runnerStatus is what is used of the runner's status.
type runnerStatus struct {
	State      string `json:"state"`
	Deliveries []struct {
		Name     string `json:"name"`
		InFlight int64  `json:"inFlight"`
		Lag      int64  `json:"lag"`
	} `json:"deliveries"`
	Processes []runnerProcess `json:"processes"`
}

type runnerProcess struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

func (s *runnerStatus) empty() bool {
	for _, d := range s.Deliveries {
		if d.InFlight > 0 || d.Lag > 0 {
			return false
		}
	}
	return len(s.Deliveries) > 0
}

func (p *platform) status(ctx context.Context) (*runnerStatus, error) {
	var s runnerStatus
	return &s, getJSON(ctx, p.url+"/status", &s)
}

func getJSON(ctx context.Context, url string, to any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := statusClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(to)
}

// complete compares the rows with what was sent.
func (m *meters) complete(ctx context.Context) error {
	var rows uint64
	if err := m.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM public.server_metrics) + (SELECT count(*) FROM public.application_metrics)`).Scan(&rows); err != nil {
		return fmt.Errorf("counting rows: %w", err)
	}
	if rows != m.stored {
		return fmt.Errorf("%d readings were sent and %d are stored", m.stored, rows)
	}
	return nil
}

var (
	errWarming = errors.New("detect is still learning")
	errBehind  = errors.New("the runner is behind")
)

// learnt waits until detect has models of all entities.
func (m *meters) learnt(ctx context.Context) error {
	status, err := m.platform.status(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(status.Processes, func(p runnerProcess) bool { return p.Name == "detect" })
	if i < 0 {
		return errors.New("there is no process detect")
	}
	began := time.Now()
	for {
		var answer struct {
			Models []struct {
				Entity string `json:"entity"`
				Status string `json:"status"`
			} `json:"models"`
			Left int `json:"entities_left_out"`
		}
		entities, warming := map[string]bool{}, 0
		err := getJSON(ctx, "http://"+status.Processes[i].Address+"/models", &answer)
		for _, model := range answer.Models {
			entities[model.Entity] = true
			if model.Status == "warming" {
				warming++
			}
		}
		if err == nil && answer.Left == 0 && len(entities) == metersServers+metersServices && warming == 0 {
			return nil
		}
		if time.Since(began) > modelsPatience {
			return fmt.Errorf("after %s, %d models of %d entities are missing: %w", modelsPatience, warming, len(entities), cmp.Or(err, errWarming))
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// latencies adds what is known of the anomalies of a phase.
func (m *meters) latencies(ctx context.Context, r *row, list []detected, truth string) error {
	wanted := map[reading]time.Time{}
	for _, d := range list {
		wanted[d.key] = time.Time{}
	}
	if err := m.timestamps(ctx, wanted); err != nil {
		return err
	}
	var waited []time.Duration
	for _, d := range list {
		if sent := wanted[d.key]; !sent.IsZero() {
			waited = append(waited, d.at.Sub(sent))
		}
	}
	if len(waited) < len(list) {
		return fmt.Errorf("of %d anomalies, %d have no reading", len(list), len(list)-len(waited))
	}
	slices.Sort(waited)
	needed, err := readingsToDetect(truth, list)
	if err != nil {
		return err
	}
	r.add("anomalies", float64(len(list)))
	r.add("anomaly "+colP50, quantile(waited, 0.5))
	r.add("anomaly "+colP99, quantile(waited, 0.99))
	r.add("anomaly "+colMax, quantile(waited, 1))
	r.add("readings to detect", needed)
	return nil
}

// timestamps reads the raw topic again and sets those of the wanted readings.
func (m *meters) timestamps(ctx context.Context, wanted map[reading]time.Time) error {
	if len(wanted) == 0 {
		return nil
	}
	options, err := kafka.Config{Brokers: []string{m.platform.brokers}, ClientID: "bench"}.Options()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(options, kgo.ConsumeTopics(metersTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, readingsPatience)
	defer cancel()
	for read := uint64(0); read < m.stored; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading %s again: %w", metersTopic, err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			read++
			var v struct {
				At      time.Time `json:"timestamp"`
				Server  string    `json:"server_id"`
				Service string    `json:"service_name"`
			}
			if json.Unmarshal(record.Value, &v) != nil {
				return // none of the wanted
			}
			if v.Service != "" {
				v.Server = v.Service
			}
			key := reading{v.Server, v.At.UnixMicro()}
			if _, ok := wanted[key]; ok {
				wanted[key] = record.Timestamp
			}
		})
	}
	return nil
}

// readingsToDetect is the median of how many readings an anomaly of the truth had
// before the one by which it was first detected.
func readingsToDetect(truth string, list []detected) (float64, error) {
	content, err := os.ReadFile(truth)
	if err != nil {
		return 0, err
	}
	var needed []float64
	for line := range bytes.Lines(content) {
		var v struct {
			Entity  string    `json:"entity_id"`
			Metrics []string  `json:"metrics"`
			Start   time.Time `json:"start"`
			End     time.Time `json:"end"`
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return 0, fmt.Errorf("reading the ground truth: %w", err)
		}
		first := int64(math.MaxInt64)
		for _, d := range list {
			right := slices.ContainsFunc(v.Metrics, func(name string) bool { return strings.HasSuffix(d.kind, "_"+name) }) || d.kind == "isolation_forest"
			if right && d.key.entity == v.Entity && d.key.at >= v.Start.UnixMicro() && d.key.at < v.End.UnixMicro() {
				first = min(first, d.key.at)
			}
		}
		if first < math.MaxInt64 {
			needed = append(needed, float64(first-v.Start.UnixMicro())/float64(metersInterval.Microseconds()))
		}
	}
	if len(needed) == 0 {
		return math.NaN(), nil
	}
	slices.Sort(needed)
	return needed[len(needed)/2], nil
}
