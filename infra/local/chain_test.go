package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/events"
)

func TestEveryRecordGetsOneVerdictAndOneLineInTheLake(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	const n = 20_000
	r := p.startLoad("-rate", "0", "-count", strconv.Itoa(n)).wait()
	l := newLedger(p)
	l.settle()
	l.check()
	l.checkProduced(r)
	valid, invalid := 0, 0
	for _, records := range l.verdicts {
		if records[0].Topic == validatedTopic {
			valid++
		} else {
			invalid++
		}
	}
	if uint64(valid) != r.Good || uint64(invalid) != r.Bad {
		t.Errorf("%d valid and %d invalid verdicts, the generator made %d and %d", valid, invalid, r.Good, r.Bad)
	}

	// Stopping and starting again goes on where it was.
	p.stop()
	p.start()
	again := p.startLoad("-rate", "0", "-count", "1000", "-seed", "2").wait()
	l = newLedger(p)
	l.settle()
	l.check()
	if want := n + int(again.Next); l.raw != want {
		t.Errorf("%d raw records after the restart, want %d", l.raw, want)
	}
	p.stop()
}

// TestNothingIsLostWhenProcessesAreKilled kills the runner and its parts at random
// moments under load. CHAOS_ROUNDS says how often, CHAOS_SEED repeats a run.
func TestNothingIsLostWhenProcessesAreKilled(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	chaos(t, p, map[string]func(){}, "verdicts", "runner", "kafka", "validate", "s3", "lake", "deadletter")
}

// chaos kills one of the victims, sometimes two, in each round, then holds all that
// was produced against the verdicts and the lake and, when rows are wanted, gold and
// features too. A victim that the platform does not start itself is killed and started
// by its function in others.
func chaos(t *testing.T, p *platformProcess, others map[string]func(), want string, victims ...string) {
	t.Helper()
	rounds, rate, seed := 3, "3000", rand.Uint64()
	if want == "rows" {
		rounds, rate = 2, "1500"
	}
	for name, set := range map[string]func(string) error{
		"CHAOS_ROUNDS": func(v string) (err error) { rounds, err = strconv.Atoi(v); return err },
		"CHAOS_SEED":   func(v string) (err error) { seed, err = strconv.ParseUint(v, 10, 64); return err },
	} {
		if v := os.Getenv(name); v != "" {
			if err := set(v); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	t.Logf("CHAOS_ROUNDS=%d CHAOS_SEED=%d", rounds, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	generator := p.startLoad("-rate", rate)
	for round := range rounds {
		awaitTraffic(p)
		time.Sleep(time.Duration(rng.IntN(800)) * time.Millisecond) // the random moment, not a wait
		kill := []string{victims[round%len(victims)]}
		if rng.IntN(3) == 0 {
			kill = append(kill, victims[(round+1+rng.IntN(len(victims)-1))%len(victims)])
		}
		t.Logf("round %d: killing %s", round+1, strings.Join(kill, " and "))
		kill = slices.DeleteFunc(kill, func(name string) bool {
			if others[name] == nil {
				return false
			}
			others[name]()
			return true
		})
		p.killParts(kill...)
	}
	awaitTraffic(p)
	report := generator.stop()
	l := newLedger(p)
	l.settle()
	l.check()
	l.checkProduced(report)
	if want == "rows" {
		l.settleGold()
		l.checkGold()
		l.checkFeatures()
	}
	p.stop()
}

// awaitTraffic waits until records go through the whole of the platform.
func awaitTraffic(p *platformProcess) {
	p.t.Helper()
	const some = 2000
	before, first := int64(0), true
	eventually(p.t, "verdicts are written", func() bool {
		s, err := p.askStatus()
		if err != nil || s.State != "running" || s.Validated.Total == 0 {
			return false
		}
		if first {
			before, first = s.Validated.Total, false
		}
		return s.Validated.Total >= before+some
	}, func() string {
		s, err := p.askStatus()
		return fmt.Sprintf("%+v %v", s.Deliveries, err)
	})
}

func TestDuplicatesAndDisorderChangeNothingInTheLake(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	const n, copies = 300, 3
	l := newLedger(p)
	values := messages(t, n)
	const source = "/millrace/test"
	post := func(i int) error {
		req, err := http.NewRequest(http.MethodPost, p.url("/millrace/default"), bytes.NewReader(values[i]))
		if err != nil {
			return err
		}
		req.Header.Set("ce-specversion", "1.0")
		req.Header.Set("ce-id", strconv.Itoa(i))
		req.Header.Set("ce-source", source)
		req.Header.Set("ce-type", events.BehaviorRaw)
		req.Header.Set("content-type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			return errors.New(resp.Status)
		}
		return nil
	}
	for i := range values {
		l.expect(source, strconv.Itoa(i))
		if err := post(i); err != nil {
			t.Fatal(err)
		}
	}
	l.settle()
	l.check()
	before := l.lakeLines()

	order := make([]int, 0, n*copies)
	for i := range n * copies {
		order = append(order, i%n)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	var wg sync.WaitGroup
	for part := range slices.Chunk(order, len(order)/4) {
		wg.Go(func() {
			for _, i := range part {
				if err := post(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	// Every copy gets its verdict, the same as the first.
	eventually(t, "the verdicts of the copies", func() bool {
		if err := l.read(running(t)); err != nil {
			return false
		}
		total := 0
		for _, records := range l.verdicts {
			total += len(records)
		}
		return total == n*(1+copies)
	}, func() string { return fmt.Sprint(len(l.verdicts), " ids") })
	l.settle()
	l.check()
	if diff := cmp.Diff(before, l.lakeLines()); diff != "" {
		t.Errorf("the lake has changed (-before +after):\n%s", diff)
	}
}

func TestChildrenDoNotOutliveAKilledRunner(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	s, err := p.askStatus()
	if err != nil {
		t.Fatal(err)
	}
	p.kill()
	for _, child := range s.Processes {
		eventually(t, child.Name+" is gone", func() bool {
			return errors.Is(syscall.Kill(child.PID, 0), syscall.ESRCH)
		}, func() string { return fmt.Sprint("process ", child.PID, " lives") })
	}
	// Neither folder nor ports are held by anything.
	p.start()
	p.stop()
}

func TestSecondSignalEndsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.start()
	s, err := p.askStatus()
	if err != nil {
		t.Fatal(err)
	}
	// Two different ones: equal signals may merge into one.
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("ended with %d, want 130:\n%s", code, p.out)
	}
	for _, child := range s.Processes {
		eventually(t, child.Name+" is gone", func() bool {
			return errors.Is(syscall.Kill(child.PID, 0), syscall.ESRCH)
		}, func() string { return fmt.Sprint("process ", child.PID, " lives") })
	}
}

func TestPartsListenOnTheLoopbackInterfaceOnly(t *testing.T) {
	t.Parallel()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t)
	p.start()
	s, err := p.askStatus()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.IsLoopback() || ip.IP.To4() == nil {
			continue
		}
		for _, part := range s.Processes {
			_, port, err := net.SplitHostPort(part.Address)
			if err != nil {
				continue // loadgen listens nowhere
			}
			if c, err := net.DialTimeout("tcp", net.JoinHostPort(ip.IP.String(), port), time.Second); err == nil {
				c.Close()
				t.Errorf("%s can be reached at %s:%s", part.Name, ip.IP, port)
			}
		}
	}
}

func TestProducerStopsBeforeTheDiskIsFull(t *testing.T) {
	t.Parallel()
	p := newPlatform(t, "MILLRACE_MIN_FREE=9000000000000000000")
	p.args = slices.DeleteFunc(p.args, func(arg string) bool { return arg == "--no-load" })
	p.start()
	eventually(t, "the producer is stopped", func() bool {
		now, ok := p.process("loadgen")
		return ok && now.State == supervise.Stopped
	}, p.out.String)
	if !strings.Contains(p.out.String(), "--min-free") {
		t.Errorf("the user is not told why:\n%s", p.out)
	}
	p.stop()
}

// TestRealKafka is the chain on an Apache Kafka, which is killed too.
// infra/kafka/real.sh fetches and runs it; without Java or Maven there is none.
func TestRealKafka(t *testing.T) {
	if os.Getenv("TEST_REAL_KAFKA") == "" {
		t.Skip("needs Java and about a minute: make test-kafka runs it")
	}
	script := filepath.Join(checkout(), "infra", "kafka", "real.sh")
	if out, err := exec.Command(script, "fetch").CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 3 {
			t.Skipf("%s", bytes.TrimSpace(out))
		}
		t.Fatalf("fetching Kafka: %v\n%s", err, out)
	}
	dir, port := t.TempDir(), freePorts(t, 2)
	var broker *exec.Cmd
	output := &lockedBuffer{}
	start := func() {
		broker = exec.Command(script, "run", dir, strconv.Itoa(port))
		broker.Env = append(os.Environ(), "KAFKA_CACHE="+os.Getenv("KAFKA_CACHE"))
		broker.Stdout, broker.Stderr = output, output
		if err := broker.Start(); err != nil {
			t.Fatal(err)
		}
	}
	kill := func() {
		_ = broker.Process.Kill()
		_ = broker.Wait()
	}
	t.Cleanup(func() {
		kill()
		if t.Failed() {
			out := output.String()
			t.Logf("end of Kafka's output:\n%s", out[max(0, len(out)-5000):])
		}
	})
	p := newPlatform(t, "KAFKA_BROKERS="+local(port))
	answers := func() bool {
		client := p.kafka()
		defer client.Close()
		return client.Ping(running(t)) == nil
	}
	start()
	eventually(t, "Kafka answers", answers, output.String)
	p.start()
	if _, embedded := p.process("kafka"); embedded {
		t.Error("the embedded Kafka was started too")
	}
	chaos(t, p, map[string]func(){"real Kafka": func() {
		kill()
		// It stays away long enough for everybody to notice.
		time.Sleep(time.Second)
		start()
		eventually(t, "Kafka answers again", answers, output.String)
	}}, "verdicts", "real Kafka", "runner", "validate", "lake", "s3")
}
