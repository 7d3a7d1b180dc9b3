package contract

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden verdicts that are missing; those that are there stay")

// A golden verdict is the byte-exact answer to one record, in testdata/golden as
// <topic>/<case>.in and .out. Consumers were written for them, so none is ever
// deleted, and one that changes is changed by hand.
func TestGoldenVerdicts(t *testing.T) {
	ins, err := filepath.Glob("testdata/golden/*/*.in")
	if err != nil || len(ins) < 20 {
		t.Fatalf("%d golden records, %v", len(ins), err)
	}
	for _, in := range ins {
		t.Run(strings.TrimPrefix(in, "testdata/golden/"), func(t *testing.T) {
			value, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			got := topic(t, filepath.Base(filepath.Dir(in))).Check(value, now).Body
			out := strings.TrimSuffix(in, ".in") + ".out"
			want, err := os.ReadFile(out)
			if os.IsNotExist(err) && *update {
				if err := os.WriteFile(out, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
