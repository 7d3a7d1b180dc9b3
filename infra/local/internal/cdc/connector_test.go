package cdc

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// The connector on a cluster is the one that is tested, and of the version whose
// records these are like.
func TestConnector_oneConfiguration(t *testing.T) {
	read := func(name string) []byte {
		text, err := os.ReadFile("../../../debezium/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var tested struct {
		Name   string
		Config map[string]string
	}
	if err := json.Unmarshal(read("connector.json"), &tested); err != nil {
		t.Fatal(err)
	}
	var resource struct {
		Metadata struct{ Name string }
		Spec     struct {
			Class    string
			TasksMax string `yaml:"tasksMax"`
			Config   map[string]string
		}
	}
	_, connector, found := strings.Cut(string(read("connect.yaml")), "\n---\n")
	if !found {
		t.Fatal("connect.yaml has one document")
	}
	if err := yaml.Unmarshal([]byte(connector), &resource); err != nil {
		t.Fatal(err)
	}
	onCluster := resource.Spec.Config
	onCluster["connector.class"], onCluster["tasks.max"] = resource.Spec.Class, resource.Spec.TasksMax
	if diff := cmp.Diff(tested.Config, onCluster); diff != "" {
		t.Errorf("configuration (-connector.json +connect.yaml):\n%s", diff)
	}
	if tested.Name != resource.Metadata.Name {
		t.Errorf("names %s and %s differ", tested.Name, resource.Metadata.Name)
	}
	for _, name := range []string{"pom.xml", "connect.yaml"} {
		if !strings.Contains(string(read(name)), debeziumVersion) {
			t.Errorf("%s does not pin version %s", name, debeziumVersion)
		}
	}
	if cfg := tested.Config; cfg["topic.prefix"]+"."+cfg["table.include.list"] != topic {
		t.Errorf("the connector writes to another topic than %s", topic)
	}
}
