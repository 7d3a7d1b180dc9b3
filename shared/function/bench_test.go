package function

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/telemetry"
)

// acceptAll takes every event and replies nothing: what is measured is the runtime.
var acceptAll = HandlerFunc(func(_ context.Context, batch []event.Event) []Result { return make([]Result, len(batch)) })

// reflectAll replies to every event with its own data.
var reflectAll = HandlerFunc(func(_ context.Context, batch []event.Event) []Result {
	results := make([]Result, len(batch))
	for i := range batch {
		r := events.NewReply(&batch[i], "test", "dev.millrace.behavior.validated.v1")
		r.SetDataContentType("application/json")
		r.DataEncoded = batch[i].DataEncoded
		results[i].Reply = &r
	}
	return results
})

// clickstream makes events as a KafkaSource sends them, 293 bytes of data each.
func clickstream(n int) []events.Message {
	ms := make([]events.Message, n)
	for i := range ms {
		data := fmt.Sprintf(`{"event_time":"2019-10-01 02:30:12 UTC","event_type":"view","product_id":1306133,`+
			`"category_id":2053013558920217191,"category_code":"computers.notebook","brand":"xiaomi","price":1029.37,`+
			`"user_id":512900744,"user_session":"76b918d5-b344-41fc-8632-baf222ec760f","n":%d}`, 1_000_000_000+i)
		ms[i] = events.Message{Attrs: []events.Attr{
			{Name: "specversion", Value: "1.0"},
			{Name: "id", Value: fmt.Sprintf("partition:%d/offset:%d", i%12, i)},
			{Name: "source", Value: "/apis/v1/namespaces/millrace/kafkasources/raw#tracking.raw_user_behavior"},
			{Name: "type", Value: events.KafkaRecord},
			{Name: "datacontenttype", Value: "application/json"},
			{Name: "subject", Value: fmt.Sprintf("partition:%d#%d", i%12, i)},
			{Name: "time", Value: "2026-01-02T03:04:05.678Z"},
			{Name: "partitionkey", Value: "76b918d5-b344-41fc-8632-baf222ec760f"},
		}, Data: []byte(data)}
	}
	return ms
}

// benchServer counts its metrics for real, as a function does.
func benchServer(b *testing.B, h Handler) *Server {
	return newServer(b, Config{}, h, func(o *options) {
		o.hot = telemetry.NewHot("test")
	})
}

// raw gives a request as bytes on the wire.
func raw(ms ...events.Message) []byte {
	var b bytes.Buffer
	h := http.Header{}
	body := ms[0].Data
	if len(ms) == 1 {
		events.SetHTTP(h, &ms[0])
	} else {
		body = events.AppendBatch(nil, ms)
		h.Set("Content-Type", events.ContentTypeBatch)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	b.WriteString("POST / HTTP/1.1\r\nHost: localhost\r\n")
	if err := h.Write(&b); err != nil {
		panic(err)
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// netHTTP is what net/http alone costs: it reads the body and answers 202.
var netHTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, body); err != nil {
		panic(err)
	}
	w.WriteHeader(http.StatusAccepted)
})

// BenchmarkHTTP measures over loopback with a loader in the same process: keep-alive
// connections that write prepared bytes and read the status and the length. So it
// costs little itself, but it is part of cpu-ns/event.
func BenchmarkHTTP(b *testing.B) {
	for _, bench := range []struct {
		name  string
		batch int
		h     Handler
	}{
		{"single/nethttp", 1, nil},
		{"single/accept", 1, acceptAll},
		{"single/reply", 1, reflectAll},
		{"batch=100/accept", 100, acceptAll},
		{"batch=100/reply", 100, reflectAll},
	} {
		b.Run(bench.name, func(b *testing.B) {
			l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			if bench.h == nil {
				server := &http.Server{Handler: netHTTP, ReadHeaderTimeout: time.Second}
				go func() {
					<-ctx.Done()
					ended <- server.Close()
				}()
				go func() { _ = server.Serve(l) }() // ends by Close
			} else {
				s := benchServer(b, bench.h)
				go func() { ended <- s.Serve(ctx, l) }()
			}
			request := raw(clickstream(bench.batch)...)

			const connections = 16
			var left atomic.Int64
			left.Store(int64(b.N))
			var loaders sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			for range connections {
				loaders.Go(func() {
					c, err := new(net.Dialer).DialContext(b.Context(), "tcp", l.Addr().String())
					if err != nil {
						b.Error(err)
						return
					}
					defer func() { _ = c.Close() }()
					r := bufio.NewReaderSize(c, 64<<10)
					for left.Add(-1) >= 0 {
						if _, err := c.Write(request); err != nil {
							b.Error(err)
							return
						}
						if err := readAnswer(r); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			loaders.Wait()
			n := float64(b.N * bench.batch)
			b.ReportMetric(float64(cpu()-before)/n, "cpu-ns/event")
			b.ReportMetric(n/b.Elapsed().Seconds(), "events/s")
			b.StopTimer()
			stop()
			if err := <-ended; err != nil {
				b.Error(err)
			}
		})
	}
}

func readAnswer(r *bufio.Reader) error {
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		switch {
		case first && !bytes.HasPrefix(line, []byte("HTTP/1.1 20")):
			return fmt.Errorf("answer %s", line)
		case bytes.HasPrefix(line, []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[16:]))); err != nil {
				return err
			}
		case len(line) == 2:
			_, err := io.CopyN(io.Discard, r, int64(length))
			return err
		}
	}
}

// cpu is the CPU time of the process in nanoseconds.
func cpu() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkServeHTTP measures the runtime without a network and HTTP parsing.
func BenchmarkServeHTTP(b *testing.B) {
	for _, bench := range []struct {
		name  string
		batch int
		h     Handler
	}{
		{"single/accept", 1, acceptAll},
		{"single/reply", 1, reflectAll},
		{"batch=100/accept", 100, acceptAll},
		{"batch=100/reply", 100, reflectAll},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s := benchServer(b, bench.h)
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw(clickstream(bench.batch)...))))
			if err != nil {
				b.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				b.Fatal(err)
			}
			w := &discardWriter{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				r.Body = io.NopCloser(bytes.NewReader(body))
				clear(w.header)
				s.ServeHTTP(w, r)
			}
			if w.status >= 300 {
				b.Fatalf("status %d", w.status)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*bench.batch), "ns/event")
		})
	}
}

type discardWriter struct {
	header http.Header
	status int
}

func (w *discardWriter) Header() http.Header         { return w.header }
func (w *discardWriter) WriteHeader(status int)      { w.status = status }
func (w *discardWriter) Write(b []byte) (int, error) { return len(b), nil }
