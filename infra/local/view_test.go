package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/eventing"
)

// busy is a Status in which everything has something to show.
func busy() Status {
	now := time.Date(2026, 11, 22, 3, 4, 5, 0, time.UTC)
	s := Status{
		Version: "v1.2.3", State: "running", Time: now, Started: now.Add(-754 * time.Second), StateIn: "/home/user/millrace/.local",
		URLs:      []URL{{"status", "http://127.0.0.1:8080/status"}, {"features", "http://127.0.0.1:8083"}},
		Raw:       Rate{1_234_567, 10_012.4},
		Validated: Rate{1_111_111, 9010}, Invalid: Rate{123_456, 1002.4}, InvalidShare: 0.1001, Predictions: Rate{20_000, 161.7},
		Lake:      LakeStatus{Objects: 340, Bytes: 1_234_000_000, Records: 1_200_000, LastWrite: now.Add(-3 * time.Second)},
		Warehouse: WarehouseStatus{Facts: 1_100_000, Runs: 4000, FailedRuns: 1, LastRun: LastRun{Step: "check", State: "succeeded", Finished: now.Add(-2 * time.Second)}},
		Features:  FeatureStatus{Entities: 45_678, Sessions: 12_345},
		RSSBytes:  284_000_000, DeadLetters: 2,
	}
	for i := range 6 {
		s.Topics = append(s.Topics, TopicStatus{Name: fmt.Sprintf("topic.with.a.rather.long.name.number-%d", i), Role: rawRole, Rate: Rate{int64(i) * 1000, 12}})
	}
	for i := range 9 {
		d := Delivery{FlowStats: eventing.FlowStats{Kind: "Trigger", Name: fmt.Sprintf("trigger-%d", i)}}
		if i < 5 {
			d.Received, d.Delivered, d.Lag, d.PerSecond = 10, 1_234_567_890, 123_456, 10_000
		}
		s.Deliveries = append(s.Deliveries, d)
	}
	s.Deliveries[0].FailingSince = now
	for _, name := range []string{"runner", "kafka", "s3", "redis", "postgres", "cdc", "deadletter", "etl-step", "featurize", "ingest", "lake", "store", "validate", "loadgen"} {
		s.Processes = append(s.Processes, ProcessStatus{
			Name: name, State: supervise.Ready, PID: 1_234_567, Address: "127.0.0.1:65000", RSSBytes: 61_000_000, CPUPercent: 199, Restarts: 3,
		})
	}
	s.Processes[3].State = supervise.Restarting
	for i := range 30 {
		s.Events = append(s.Events, LogEvent{Time: now, Part: "validate", Text: fmt.Sprintf("event %d ", i) + strings.Repeat("long ", 60) + "\nand a second line", Bad: i%2 == 0})
	}
	return s
}

func TestScreenFitsEverySize(t *testing.T) {
	empty := Status{State: "starting", URLs: []URL{{"status", "http://127.0.0.1:8080/status"}}}
	for _, s := range []Status{busy(), empty} {
		for width := 60; width <= 200; width += 7 {
			for height := 12; height <= 70; height++ {
				lines := render(s, width, height)
				if len(lines) > height {
					t.Fatalf("%d lines on a screen of %d", len(lines), height)
				}
				for _, l := range lines {
					if n := utf8.RuneCountInString(ansi.ReplaceAllString(l, "")); n > width {
						t.Fatalf("a line of %d columns on a screen of %d: %s", n, width, l)
					}
				}
			}
		}
	}
}

func TestScreenOf80x24ShowsWhatMatters(t *testing.T) {
	lines := render(busy(), 80, 24)
	for i := range lines {
		lines[i] = strings.TrimRight(ansi.ReplaceAllString(lines[i], ""), " ")
	}
	long := strings.Repeat("long ", 60)
	event := func(n int) string { return cut(fmt.Sprintf(" 03:04:05 validate event %d %s", n, long), 79) }
	want := []string{
		" Millrace v1.2.3  running 00:12:34                         14 processes, 284 MB",
		" raw 10,012/s  →  valid 9,010/s  invalid 1,002/s (10.0 %)     predictions 162/s",
		" lake 1,200,000 records in 340 objects, 1.2 GB, 3 s ago          dead letters 2",
		" gold 1,100,000 rows, last step check 2 s ago                    failed steps 1",
		" features of 45,678 entities, 12,345 sessions         API http://127.0.0.1:8083",
		"",
		" DELIVERY (3 more)                    now/s   delivered       lag retries  dead",
		" trigger-0 trigger                   10,000      1,234M   123,456       0     0",
		" trigger-1 trigger                   10,000      1,234M   123,456       0     0",
		" trigger-2 trigger                   10,000      1,234M   123,456       0     0",
		" trigger-3 trigger                   10,000      1,234M   123,456       0     0",
		" trigger-4 trigger                   10,000      1,234M   123,456       0     0",
		" trigger-5 trigger                        0           0         0       0     0",
		"",
		" PROCESS, memory, cpu",
		" runner      61 MB 199 %   kafka       61 MB 199 %   s3          61 MB 199 %",
		" redis restarting          postgres    61 MB 199 %   cdc         61 MB 199 %",
		" deadletter  61 MB 199 %   etl-step    61 MB 199 %   featurize   61 MB 199 %",
		" ingest      61 MB 199 %   lake        61 MB 199 %   store       61 MB 199 %",
		" validate    61 MB 199 %   loadgen     61 MB 199 %",
		"",
		event(28), event(29),
		" http://127.0.0.1:8080/status   logs /home/user/millrace/.local/log   Ctrl-C s…",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("screen (-want +got):\n%s", diff)
	}
}

func TestTextOfNumbers(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{count(0), "0"}, {count(999), "999"}, {count(1000), "1,000"}, {count(-1234567), "-1,234,567"},
		{rateText(0), "0"}, {rateText(0.23), "0.2"}, {rateText(9.96), "10"}, {rateText(12345.6), "12,346"},
		{bytesText(999), "999 B"}, {bytesText(1_500), "1.5 KB"}, {bytesText(61_400_000), "61 MB"}, {bytesText(5_000_000_000_000), "5.0 TB"},
		{age(3661 * time.Second), "01:01:01"}, {ago(59 * time.Second), "59 s ago"}, {ago(2 * time.Hour), "2 h ago"},
		{shortCount(99_999_999), "99,999,999"}, {shortCount(1_234_567_890), "1,234M"},
		{cut("abcdef", 4), "abc…"}, {cut("abc", 3), "abc"}, {cut("abc", 0), ""},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}

func TestRateForgetsWhatIsOldAndSurvivesARestartOfTheCount(t *testing.T) {
	var m meter
	at := time.Unix(0, 0)
	rate := 0.0
	for i := range 20 {
		rate = m.add(at.Add(time.Duration(i)*time.Second), float64(i*100))
	}
	if rate != 100 {
		t.Errorf("steady rate %v, want 100", rate)
	}
	for i := 20; i < 30; i++ {
		rate = m.add(at.Add(time.Duration(i)*time.Second), 1900)
	}
	if rate != 0 {
		t.Errorf("rate long after the count stood still: %v", rate)
	}
	if rate = m.add(at.Add(31*time.Second), 5); rate != 0 {
		t.Errorf("rate when the count began again: %v", rate)
	}
	if rate = m.add(at.Add(32*time.Second), 25); rate != 20 {
		t.Errorf("rate after that: %v, want 20", rate)
	}
}

func TestPortsAreAssignedInARowOrByName(t *testing.T) {
	functions := []string{"deadletter", "etl-step", "own"}
	for _, tc := range []struct {
		name string
		base int
		by   portFlags
		want map[string]int
	}{
		{"usual", 0, portFlags{}, map[string]int{"ingress": 8080, "kafka": 9092, "s3": 9000, "postgres": 15432, "redis": 16379, "mlflow": 15000, "deadletter": 8081, "etl-step": 8082, "own": 8100}},
		{"base", 20000, portFlags{}, map[string]int{"ingress": 20000, "kafka": 20001, "s3": 20002, "postgres": 20003, "redis": 20004, "mlflow": 20005, "deadletter": 20006, "etl-step": 20007, "own": 20008}},
		{"by name", 20000, portFlags{"etl_step": 30000, "kafka": 9192}, map[string]int{"ingress": 20000, "kafka": 9192, "s3": 20002, "postgres": 20003, "redis": 20004, "mlflow": 20005, "deadletter": 20006, "etl-step": 30000, "own": 20008}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options{portBase: tc.base, ports: tc.by}
			got, err := o.assignPorts(functions)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFunctionGetsTheEnvironmentOfItsServiceWithLocalAddresses(t *testing.T) {
	t.Setenv("LOG_LEVEL", "debug")
	t.Setenv("SECRET_OF_THE_SHELL", "x")
	root := checkout()
	p, err := loadPlatform(root)
	if err != nil {
		t.Fatal(err)
	}
	o := options{root: root, bin: "/bin", portBase: 20000, ports: portFlags{}}
	var names []string
	for _, s := range p.services {
		names = append(names, s.name)
	}
	ports, err := o.assignPorts(names)
	if err != nil {
		t.Fatal(err)
	}
	w := newParts(o, &stateDir{path: t.TempDir()}, p, ports, secrets{IngestToken: "token"})
	w.database.url = "postgres://u:p@127.0.0.1:20003/millrace"
	if err := w.openRedis(); err != nil {
		t.Fatal(err)
	}
	env := map[string]map[string]string{}
	for _, s := range p.services {
		spec, err := w.functionSpec(s)
		if err != nil {
			t.Fatal(err)
		}
		env[s.name] = map[string]string{}
		for _, v := range spec.Env {
			name, value, _ := strings.Cut(v, "=")
			env[s.name][name] = value
		}
		if _, leaked := env[s.name]["SECRET_OF_THE_SHELL"]; leaked {
			t.Errorf("%s got a variable that its service.yaml does not have", s.name)
		}
	}
	for _, tc := range []struct{ function, name, want string }{
		{"lake", "KAFKA_BROKERS", "127.0.0.1:20001"},
		{"lake", "S3_ENDPOINT", "http://127.0.0.1:20002"},
		{"lake", "S3_ACCESS_KEY", defaultAccessKey},
		{"lake", "PORT", fmt.Sprint(ports["lake"])},
		{"lake", "LISTEN_HOST", "127.0.0.1"},
		{"lake", "K_SERVICE", "lake"},
		{"lake", "LOG_LEVEL", "debug"},
		{"lake", "GOMEMLIMIT", "96MiB"},
		{"lake", "K_SINK", ""},
		{"deadletter", "K_SINK", "http://127.0.0.1:20000/millrace/default"},
		{"validate", "KAFKA_BROKERS", ""},
		{"ingest", "INGEST_TOKEN", "token"},
		{"ingest", "K_SINK", "http://127.0.0.1:20000/millrace/default"},
		{"etl-step", "DATABASE_URL", "postgres://u:p@127.0.0.1:20003/millrace"},
	} {
		if got := env[tc.function][tc.name]; got != tc.want {
			t.Errorf("%s of %s: got %q, want %q", tc.name, tc.function, got, tc.want)
		}
	}
}
