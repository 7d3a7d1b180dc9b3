package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChosenFunctionsKeepWhatTheyNeed(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		choose      []string
		has, hasNot string // names with their kinds
		stores      []string
	}{
		"verdicts": {
			choose: []string{"validate", "lake"},
			has: "function/deadletter KafkaSource/raw-user-behavior PingSource/lake-tick KafkaSink/behavior-invalid KafkaSink/behavior-validated " +
				"Trigger/behavior-invalid Trigger/behavior-validated Trigger/lake Trigger/validate",
			hasNot: "function/featurize function/store PingSource/etl-sweep KafkaSink/features-ready Trigger/featurize Trigger/features-ready Trigger/store-features Trigger/etl-bronze",
		},
		"nothing judges": {
			choose: []string{"lake"},
			has:    "function/lake PingSource/lake-tick Trigger/lake",
			hasNot: "function/validate KafkaSource/raw-user-behavior KafkaSource/cdc-events KafkaSink/behavior-validated Trigger/behavior-validated Trigger/validate",
		},
		"features": {
			choose: []string{"validate", "featurize"},
			has:    "PingSource/features-materialize KafkaSink/behavior-validated KafkaSink/features-ready Trigger/featurize Trigger/features-ready",
			hasNot: "function/lake function/store PingSource/lake-tick Trigger/lake Trigger/store-features",
			stores: []string{"REDIS_URL"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := loadPlatform(checkout())
			if err != nil {
				t.Fatal(err)
			}
			topics := len(p.topics)
			if _, err := p.choose(want.choose); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range p.services {
				got = append(got, "function/"+s.name)
			}
			for _, s := range p.graph.KafkaSources {
				got = append(got, "KafkaSource/"+s.Name)
			}
			for _, s := range p.graph.PingSources {
				got = append(got, "PingSource/"+s.Name)
			}
			for _, s := range p.graph.KafkaSinks {
				got = append(got, "KafkaSink/"+s.Name)
			}
			for _, s := range p.graph.Triggers {
				got = append(got, "Trigger/"+s.Name)
			}
			for _, name := range strings.Fields(want.has) {
				if !slices.Contains(got, name) {
					t.Errorf("%s is missing in %v", name, got)
				}
			}
			for _, name := range strings.Fields(want.hasNot) {
				if slices.Contains(got, name) {
					t.Errorf("%s is in %v", name, got)
				}
			}
			for _, store := range []string{"DATABASE_URL", "REDIS_URL"} {
				if got, want := p.needs(store), slices.Contains(want.stores, store); got != want {
					t.Errorf("it needs %s: %t, want %t", store, got, want)
				}
			}
			if len(p.topics) != topics {
				t.Errorf("%d topics are left of %d", len(p.topics), topics)
			}
		})
	}
}

func TestUnknownFunctionsAreNamed(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.args = append(p.args, "--functions", "validate,lakes")
	requireAll(t, refused(t, p), `"lakes"`, "MILLRACE_FUNCTIONS", "lake,", "validate")
}

func TestAPartRunsAlone(t *testing.T) {
	t.Parallel()
	p := newPlatform(t, "MILLRACE_FUNCTIONS=validate,lake")
	p.start()
	s, err := p.askStatus()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, process := range s.Processes {
		got = append(got, process.Name)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"deadletter", "kafka", "lake", "runner", "s3", "validate"}, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	p.stop()
}
