package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/millrace-dev/millrace/shared/model/modeltest"
)

// hundredTrees is a model of 100 trees of depth 6 over 8 features.
func hundredTrees(t testing.TB) modeltest.Files {
	t.Helper()
	data, err := os.ReadFile("../../shared/model/testdata/models/binary.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if data, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	return modeltest.Trained(t, "hundred", "1", data, 8)
}

// inferRequest is an Open Inference request of n rows of hundredTrees.
func inferRequest(n int) string {
	rows := make([]string, n)
	for i := range rows {
		rows[i] = fmt.Sprintf("[%d,%d.5,%d,0.%03d,%d,%d.25,%d.125,%d]", i%10, i*37%2000, i%8-1, i*31%1000, i%50, i%125, i*7%900, i%2)
	}
	return fmt.Sprintf(`{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,8],"data":[%s]}]}`, n, strings.Join(rows, ","))
}

// BenchmarkHTTP measures requests without the network.
func BenchmarkHTTP(b *testing.B) {
	_, uri := folder(b, hundredTrees(b))
	trees := start(b, Config{URI: uri}, nil)
	trees.waitFor(b, trees.live, "1")
	store := openStore(b)
	_, shopURI := folder(b, modeltest.Shop(b, "1", 0.5))
	shop := start(b, Config{URI: shopURI}, store)
	shop.waitFor(b, shop.live, "1")
	run := func(name string, s started, path, body string, rows int) {
		mux := http.NewServeMux()
		s.routes(mux)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				mux.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
				if w.Code != http.StatusOK {
					b.Fatal(w.Code, w.Body)
				}
			}
			b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
	for _, n := range []int{1, 10, 100} {
		run(fmt.Sprintf("infer/rows=%d", n), trees, "/v2/models/hundred/infer", inferRequest(n), n)
	}
	for _, n := range []int{1, 10, 100} {
		items := make([]string, n)
		for i := range items {
			push(b, store, int64(1000*n+i), 1, 50)
			items[i] = fmt.Sprintf(`{"user_id":%d,"product_id":1,"user_session":"040d0e0b-0a40-4d40-bdc9-c9252e877d9c"}`, 1000*n+i)
		}
		run(fmt.Sprintf("predict/lookups=%d", n), shop, "/predict", "["+strings.Join(items, ",")+"]", n)
	}
}
