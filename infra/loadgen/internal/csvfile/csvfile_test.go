package csvfile

import (
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
)

const header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"

func readAll(t *testing.T, r *Reader) (events []shop.Event, wrong []string) {
	t.Helper()
	for {
		var ev shop.Event
		var p shop.Product
		err := r.Read(&ev, &p)
		var line *LineError
		switch {
		case errors.Is(err, io.EOF):
			return events, wrong
		case errors.As(err, &line):
			wrong = append(wrong, err.Error())
		case err != nil:
			t.Fatal(err)
		default:
			events = append(events, ev)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, name := range []string{"events.csv", "events.csv.gz"} {
		path := filepath.Join(t.TempDir(), name)
		sim, err := shop.New(shop.Config{Seed: 1, Start: time.Unix(1569888000, 0), Density: 20, Products: 1000, Users: 1000})
		if err != nil {
			t.Fatal(err)
		}
		w, err := Create(path)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]shop.Event, 5000)
		for i := range want {
			sim.Next(&want[i])
			product := *want[i].Product
			product.Index = shop.NoIndex
			if i == 0 {
				product.Brand = `o"neill, the brand`
			}
			want[i].Product = &product
			if err := w.Write(&want[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got, wrong := readAll(t, r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got); diff != "" || wrong != nil {
			t.Errorf("%s: wrong lines %v, events (-written +read):\n%s", name, wrong, diff)
		}
	}
}

func TestReader_realFileFormat(t *testing.T) {
	r, err := NewReader(strings.NewReader(header +
		"2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d76fde-8bb3-4e00-8c23-a032dfed738c\r\n" +
		"2019-10-01 00:00:00 UTC,view,3900821,2053013552326770905,appliances.environment.water_heater,aqua,33.20,554748717,9333dfbd-b87a-4708-9857-6336556b0fcc"))
	if err != nil {
		t.Fatal(err)
	}
	got, wrong := readAll(t, r)
	at := time.Date(2019, 10, 1, 0, 0, 0, 0, time.UTC).Unix()
	want := []shop.Event{
		{Time: at, Product: &shop.Product{Index: shop.NoIndex, ID: 44600062, CategoryID: 2103807459595387724, Brand: "shiseido", Price: 35.79},
			User: 541312140, Session: "72d76fde-8bb3-4e00-8c23-a032dfed738c"},
		{Time: at, Product: &shop.Product{Index: shop.NoIndex, ID: 3900821, CategoryID: 2053013552326770905,
			CategoryCode: "appliances.environment.water_heater", Brand: "aqua", Price: 33.2},
			User: 554748717, Session: "9333dfbd-b87a-4708-9857-6336556b0fcc"},
	}
	if diff := cmp.Diff(want, got); diff != "" || wrong != nil {
		t.Errorf("wrong lines %v, events (-want +got):\n%s", wrong, diff)
	}
}

func TestReader_columnsInAnyOrder(t *testing.T) {
	r, err := NewReader(strings.NewReader("\ufeffprice,event_time,extra,event_type,product_id,category_id,category_code,brand,user_id,user_session\n" +
		"1.5,2019-10-01 00:00:59 UTC,x,cart,1,2,a.b,c,3,s\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, wrong := readAll(t, r)
	want := []shop.Event{{Time: time.Date(2019, 10, 1, 0, 0, 59, 0, time.UTC).Unix(), Type: shop.Cart, User: 3, Session: "s",
		Product: &shop.Product{Index: shop.NoIndex, ID: 1, CategoryID: 2, CategoryCode: "a.b", Brand: "c", Price: 1.5}}}
	if diff := cmp.Diff(want, got); diff != "" || wrong != nil {
		t.Errorf("wrong lines %v, events (-want +got):\n%s", wrong, diff)
	}
}

func TestReader_wrongLinesAreNamedAndSkipped(t *testing.T) {
	const good = "2019-10-01 00:00:00 UTC,view,1,2,,,3.5,4,s\n"
	for line, want := range map[string]string{
		"2019-10-01 00:00:00,view,1,2,,,3.5,4,s":                        `line 3: event_time "2019-10-01 00:00:00" is not YYYY-MM-DD HH:MM:SS UTC`,
		"2019-10-01 00:00:61 UTC,view,1,2,,,3.5,4,s":                    `line 3: event_time "2019-10-01 00:00:61 UTC" is not YYYY-MM-DD HH:MM:SS UTC`,
		"2019-13-01 00:00:01 UTC,view,1,2,,,3.5,4,s":                    `line 3: event_time "2019-13-01 00:00:01 UTC" is not YYYY-MM-DD HH:MM:SS UTC`,
		"2019-10-01 00:00:00 UTC,look,1,2,,,3.5,4,s":                    `line 3: event_type "look" is none of view, cart, remove_from_cart, purchase`,
		"2019-10-01 00:00:00 UTC,view,x,2,,,3.5,4,s":                    `line 3: product_id "x" is not an integer of 64 bits`,
		"2019-10-01 00:00:00 UTC,view,1,99999999999999999999,,,3.5,4,s": `line 3: category_id "99999999999999999999" is not an integer of 64 bits`,
		"2019-10-01 00:00:00 UTC,view,1,2,,,dear,4,s":                   `line 3: price "dear" is not a number`,
		"2019-10-01 00:00:00 UTC,view,1,2,,,NaN,4,s":                    `line 3: price "NaN" is not a number`,
		"2019-10-01 00:00:00 UTC,view,1,2,,,3.5,4,":                     `line 3: user_session is empty`,
		"2019-10-01 00:00:00 UTC,view,1,2,,,3.5,4":                      `line 3: 8 columns, want 9`,
		"2019-10-01 00:00:00 UTC,view,1,2,,\xff,3.5,4,s":                `line 3: not UTF-8`,
		`2019-10-01 00:00:00 UTC,view,1,2,,"open,3.5,4,s`:               `line 3: extraneous or missing " in quoted-field`,
		"":                                  `line 3: 1 columns, want 9`,
		strings.Repeat("a", 3*maxLine) + "": `line 3: longer than 65536 bytes`,
	} {
		r, err := NewReader(strings.NewReader(header + good + line + "\n" + good))
		if err != nil {
			t.Fatal(err)
		}
		got, wrong := readAll(t, r)
		if diff := cmp.Diff([]string{want}, wrong); diff != "" || len(got) != 2 {
			t.Errorf("%d good events, want 2; errors (-want +got):\n%s", len(got), diff)
		}
	}
}

func TestNewReader_refusesOtherFiles(t *testing.T) {
	for content, want := range map[string]string{
		"":                        "the file is empty",
		"a,b,c\n1,2,3\n":          "line 1: column event_time is missing",
		"\x1f\x8bnot really gzip": "unpacking",
	} {
		if _, err := NewReader(strings.NewReader(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", content, err, want)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	line := "2019-10-01 00:00:00 UTC,view,3900821,2053013552326770905,appliances.environment.water_heater,aqua,33.20,554748717,9333dfbd-b87a-4708-9857-6336556b0fcc\n"
	var file strings.Builder
	file.WriteString(header)
	for range 10_000 {
		file.WriteString(line)
	}
	var ev shop.Event
	var p shop.Product
	b.SetBytes(int64(10_000 * len(line)))
	for b.Loop() {
		r, err := NewReader(strings.NewReader(file.String()))
		if err != nil {
			b.Fatal(err)
		}
		for range 10_000 {
			if err := r.Read(&ev, &p); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(10_000*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
