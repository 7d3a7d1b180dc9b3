package events

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSmoke(t *testing.T) {
	in := `[{"specversion":"1.0","id":"1","source":"/a/b#c","type":"t","n":5,"b":true,"data": {"a": [1,2,{"x":"\u00e9"}]} ,"time":"2026-01-01T00:00:00Z"},{"specversion":"1.0","id":"2","source":"/a","type":"t","datacontenttype":"text/plain","data":"h\ni"}]`
	ms, err := ParseBatch([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	out := AppendBatch(nil, ms)
	ms2, err := ParseBatch(out)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ms, ms2); d != "" {
		t.Fatal(d)
	}
	e, err := ms[0].Event()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(e, string(out))
	m := FromEvent(&e)
	t.Log(m)
}
