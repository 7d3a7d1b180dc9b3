package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/lake/laketest"
)

// process is the function as a process of its own.
type process struct {
	t    *testing.T
	url  string
	env  []string
	cmd  *exec.Cmd
	done chan struct{}
}

func (w *world) process() *process {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	return &process{
		t: w.t.(*testing.T), url: fmt.Sprintf("http://127.0.0.1:%d/", port),
		env: append(os.Environ(), asProcess+"=1", "FUNCTION_NAME=etl-step", "LISTEN_HOST=127.0.0.1", fmt.Sprint("PORT=", port), "LOG_LEVEL=error",
			"DATABASE_URL="+w.url, "S3_ENDPOINT="+w.s3.Endpoint, "S3_ACCESS_KEY="+w.s3.AccessKey, "S3_SECRET_KEY="+w.s3.SecretKey,
			"ETL_REPORTS_BUCKET="+w.reports),
	}
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env, p.cmd.Stderr = p.env, os.Stderr
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, done := p.cmd, make(chan struct{})
	p.done = done
	go func() { _ = cmd.Wait(); close(done) }()
	p.t.Cleanup(p.kill)
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// send delivers an event as a Trigger does, until it is answered or ctx ends.
func (p *process) send(ctx context.Context, e event.Event) (reply *event.Event, err error) {
	m := events.FromEvent(&e)
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(m.Data))
		if err != nil {
			return nil, err
		}
		events.SetHTTP(req.Header, &m)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			pause(ctx) // it is being killed or started
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode == http.StatusServiceUnavailable {
			pause(ctx)
			continue
		}
		if resp.StatusCode/100 != 2 {
			return nil, fmt.Errorf("%s answered %s: %s", e.Type(), resp.Status, body)
		}
		if resp.Header.Get("Ce-Id") == "" {
			return nil, nil
		}
		got, err := events.FromHTTP(resp.Header, body)
		if err != nil {
			return nil, err
		}
		next, err := got.Event()
		return &next, err
	}
	return nil, ctx.Err()
}

// pause is the back-off of a sender, not a wait for anything.
func pause(ctx context.Context) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
	}
}

// The process is killed at random while objects come, grow and go through the
// steps. Afterwards gold is what a rebuild from the lake gives, byte for byte.
// ETL_ROUNDS is how many rounds of that, each on a fresh warehouse.
func TestKilledAtRandomGoldEqualsARebuild(t *testing.T) {
	if testing.Short() {
		t.Skip("starts and kills processes")
	}
	s3 := laketest.Start(t)
	rounds := 1
	if n, err := strconv.Atoi(os.Getenv("ETL_ROUNDS")); err == nil {
		rounds = n
	}
	for round := range rounds {
		t.Run(fmt.Sprint("round ", round), func(t *testing.T) { killedAtRandom(t, s3, uint64(round)) })
	}
}

// killedAtRandom is one round: ten kills, each at a random moment.
func killedAtRandom(t *testing.T, s3 lake.Config, seed uint64) {
	w := newWorldOn(t, s3)
	p := w.process()
	p.start()
	r := rng(7 + seed)
	const kills = 10
	var rounds sync.WaitGroup
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Minute)
	defer stop()
	work := make(chan []object)
	var failures sync.Map
	for range 3 {
		rounds.Go(func() {
			for objects := range work {
				for _, o := range objects {
					e := created(o)
					for {
						reply, err := p.send(ctx, e)
						if err != nil {
							failures.Store(o.Key, err)
							return
						}
						if reply == nil || stepOf(reply.Type()) == nil {
							break
						}
						e = *reply
					}
				}
			}
		})
	}
	// The killer goes on until it has killed often enough, the work until it ends.
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		k := rand.New(rand.NewPCG(3, seed))
		for range kills {
			select {
			case <-time.After(time.Duration(50+k.IntN(500)) * time.Millisecond): // the random point
			case <-ctx.Done():
				return
			}
			p.kill()
			p.start()
		}
	}()
	enough := false
	for part := 0; !enough || part < 6; part++ {
		for partition := range int32(3) {
			es := shop(r, partition, 400)
			first := int64(part) * 400
			for _, n := range []int{150, 400} {
				o := w.put(key(partition, first), lines(partition, first, es[:n]...))
				select {
				case work <- []object{o}:
				case <-ctx.Done():
				}
			}
		}
		select {
		case <-killed:
			enough = true
		case <-ctx.Done():
			enough = true
		default:
		}
	}
	close(work)
	rounds.Wait()
	failures.Range(func(key, err any) bool { t.Errorf("%s: %v", key, err); return true })
	if ctx.Err() != nil {
		t.Fatal("it takes too long")
	}
	died := query(t, w.db, `SELECT step FROM etl.runs WHERE state = 'running'`)
	slices.Sort(died)
	t.Logf("steps that died: %v of %s runs", died, query(t, w.db, `SELECT count(*)::text FROM etl.runs`)[0])
	if open := query(t, w.db, `SELECT stage FROM etl.loads WHERE stage <> 'checked'`); len(open) > 0 {
		t.Errorf("loads that are not done: %v", open)
	}
	w.wantRebuild()
}
