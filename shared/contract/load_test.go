package contract

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// good is a small contract; the tests break one thing in it at a time.
const good = `name: good
kind: json
topics: [goods]
verdicts:
  valid: dev.example.good.validated.v1
  invalid: dev.example.good.invalid.v1
key: id
eventTime: at
fields:
  - name: id
    type: string
  - name: at
    type: timestamp
    formats: [rfc3339]
  - name: weight
    type: double
    min: 0
    max: 10
  - name: pieces
    type: int64
  - name: colour
    type: string
    enum: [red, blue]
    optional: true
`

func load(files map[string]string) (*Set, error) {
	fsys := fstest.MapFS{}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return Load(fsys)
}

func TestLoadErrorsNameThePlaceAndTheRule(t *testing.T) {
	_, fields, _ := strings.Cut(good, "fields:")
	if _, err := load(map[string]string{"good.yaml": good}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "kind: json", "kind: json\nretention: 7", "good.yaml:3:1: unknown field \"retention\""},
		{"unknown key of a field", "    max: 10", "    maximum: 10", "good.yaml:18:5: unknown field \"maximum\""},
		{"key twice", "key: id", "key: id\nkey: at", "good.yaml:8:1: mapping key \"key\" already defined at [7:1]"},
		{"not YAML", "topics: [goods]", "topics: [goods", "good.yaml:4:1: ',' or ']' must be specified"},
		{"tab", "    type: double", "\ttype: double", "good.yaml:16:1: found character '\t' that cannot start any token"},
		{"a list where a text should be", "key: id", "key: [id]", "good.yaml:7:6: key: a list is not text"},
		{"a text where a number should be", "max: 10", "max: much", `good.yaml:18:10: max: "much" is not a number`},
		{"a text where a boolean should be", "optional: true", "optional: maybe", `good.yaml:24:15: optional: "maybe" is not true or false`},
		{"two documents", "key: id", "---\nkey: id", "good.yaml: holds 2 documents: a file is one contract"},
		{"no name", "name: good\n", "", "good.yaml:1:1: name is missing"},
		{"name of another file", "name: good", "name: better", "good.yaml:1:7: name better should be that of the file, good"},
		{"bad name", "name: good", "name: Good one", `good.yaml:1:7: name "Good one" should be lower-case letters, digits and dashes, at most 63`},
		{"number as a name", "name: good", "name: 12", "good.yaml:1:7: name should be text, not 12"},
		{"no kind", "kind: json\n", "", "good.yaml:1:1: kind is missing: connect, debezium or json"},
		{"unknown kind", "kind: json", "kind: avro", `good.yaml:2:7: unknown kind "avro": connect, debezium or json`},
		{"no topic and no type", "topics: [goods]\n", "", "good.yaml:1:1: neither topics nor types are named, so no record would ever meet this contract"},
		{"topic twice", "topics: [goods]", "topics: [goods, goods]", `good.yaml:3:17: topic "goods" is empty or named twice`},
		{"a type that is none", "topics: [goods]", "types: [goods]", `good.yaml:3:9: type: "goods" is not a CloudEvents type such as dev.example.thing.v1`},
		{"the type of all Kafka records", "topics: [goods]", "types: [dev.knative.kafka.event]", "good.yaml:3:9: type: dev.knative.kafka.event is every Kafka record: name the topic instead"},
		{"verdict that is a raw type", "topics: [goods]", "types: [dev.example.good.invalid.v1]", "good.yaml: verdict type dev.example.good.invalid.v1 is a raw type of contract good: events would go in a circle"},
		{"no verdict", "  invalid: dev.example.good.invalid.v1\n", "", "good.yaml:5:3: verdicts.invalid is missing"},
		{"verdicts of one type", "dev.example.good.invalid.v1", "dev.example.good.validated.v1", "good.yaml:6:12: both verdicts have type dev.example.good.validated.v1"},
		{"no key", "key: id\n", "", "good.yaml:1:1: key is missing: the name of a field"},
		{"key that is no field", "key: id", "key: identity", "good.yaml:7:6: key: there is no field identity"},
		{"key that is no id", "key: id", "key: weight", "good.yaml:7:6: key weight is a double: an entity's key is a string or an int64"},
		{"key that may be absent", "key: id", "key: colour", "good.yaml:7:6: key: field colour is optional or nullable, but every record needs it"},
		{"no event time", "eventTime: at\n", "", "good.yaml:1:1: eventTime is missing: the name of a field"},
		{"event time that is no field", "eventTime: at", "eventTime: when", "good.yaml:8:12: eventTime: there is no field when"},
		{"event time that is no time", "eventTime: at", "eventTime: id", "good.yaml:8:12: eventTime id is a string, not a timestamp"},
		{"natural key that is no field", "key: id", "key: id\nnaturalKey: [id, when]", "good.yaml:8:18: naturalKey: there is no field when"},
		{"discriminator without a value", "key: id", "key: id\ndiscriminator: id", "good.yaml:8:16: discriminator id should be a string field with an enum of one value"},
		{"discriminator that is no field", "key: id", "key: id\ndiscriminator: type", "good.yaml:8:16: discriminator: there is no field type"},
		{"no fields", "fields:" + fields, "", "good.yaml:1:1: a contract has 1 to 1000 fields, not 0"},
		{"field without a name", "  - name: pieces\n    type: int64", "  - type: int64", "good.yaml:19:5: field 4 has no name"},
		{"field twice", "name: pieces", "name: weight", "good.yaml:19:11: field weight is described twice, first as field 3"},
		{"no type of a field", "    type: int64\n", "", "good.yaml:19:5: field pieces: type: is missing: string, int64, double, boolean or timestamp"},
		{"unknown type of a field", "type: int64", "type: long", `good.yaml:20:11: field pieces: type: unknown type "long": string, int64, double, boolean or timestamp`},
		{"min above max", "min: 0", "min: 11", "good.yaml:17:10: field weight: min: 11 is greater than max 10"},
		{"exclusiveMin at max", "min: 0", "exclusiveMin: 10", "good.yaml:17:19: field weight: exclusiveMin: 10 is not below max 10"},
		{"min and exclusiveMin", "min: 0", "min: 0\n    exclusiveMin: 0", "good.yaml:18:19: field weight: exclusiveMin: and min are both given"},
		{"infinite limit", "max: 10", "max: .inf", "good.yaml:18:10: field weight: max: is not a finite number"},
		{"fraction as the limit of integers", "type: int64", "type: int64\n    min: 0.5", "good.yaml:21:10: field pieces: min: 0.5 of an int64 is not a whole number below 2^53"},
		{"limit that a double cannot hold", "type: int64", "type: int64\n    max: 9223372036854775807", "good.yaml:21:10: field pieces: max: 9223372036854776000 of an int64 is not a whole number below 2^53"},
		{"limit of a text", "enum: [red, blue]", "min: 1", "good.yaml:23:10: field colour: min: is for numbers, and the field is a string"},
		{"enum of numbers", "enum: [red, blue]", "enum: [red, 2]", "good.yaml:23:17: field colour: enum: a value of a string field should be text, not 2"},
		{"enum of a number field", "type: int64", "type: int64\n    enum: [one]", "good.yaml:21:11: field pieces: enum: is for strings, and the field is a int64"},
		{"enum with a value twice", "enum: [red, blue]", "enum: [red, red]", `good.yaml:23:17: field colour: enum[1]: "red" is named twice`},
		{"empty enum", "enum: [red, blue]", "enum: []", "good.yaml:23:11: field colour: enum: has no values, so nothing would be valid"},
		{"length of a number", "type: int64", "type: int64\n    maxLength: 3", "good.yaml:21:16: field pieces: maxLength: is for strings, and the field is a int64"},
		{"length that is a fraction", "enum: [red, blue]", "maxLength: 2.5", "good.yaml:23:16: maxLength should be a whole number, not 2.5"},
		{"negative length", "enum: [red, blue]", "minLength: -1", "good.yaml:23:16: field colour: minLength: -1 is negative or greater than maxLength 0"},
		{"lengths that exclude each other", "enum: [red, blue]", "minLength: 5\n    maxLength: 4", "good.yaml:23:16: field colour: minLength: 5 is negative or greater than maxLength 4"},
		{"bad pattern", "enum: [red, blue]", "pattern: '[a'", "good.yaml:23:14: field colour: pattern: error parsing regexp: missing closing ]: `[a)$`"},
		{"timestamp without formats", "    formats: [rfc3339]\n", "", "good.yaml:12:5: field at: formats: is missing: utc, zoned, rfc3339, micros or millis"},
		{"unknown format", "formats: [rfc3339]", "formats: [rfc3339, iso]", `good.yaml:14:24: field at: formats[1]: "iso" is unknown or named twice: utc, zoned, rfc3339, micros or millis`},
		{"formats of a number", "type: int64", "type: int64\n    formats: [utc]", "good.yaml:21:14: field pieces: formats: is for timestamps, and the field is a int64"},
		{"quotes around a double", "max: 10", "acceptQuoted: true", "good.yaml:18:19: field weight: acceptQuoted: is for int64, and the field is a double"},
		{"metric that is a text", "optional: true", "metric: true", "good.yaml:24:13: field colour: metric: is for numbers, and the field is a string"},
		{"a name of the envelope", "kind: json", "kind: connect", ""},
		{"a name of Debezium's envelope", "kind: json", "kind: debezium", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(good, c.old) {
				t.Fatalf("the contract has no %q", c.old)
			}
			text := strings.Replace(good, c.old, c.new, 1)
			want := c.want
			if want == "" { // only wrong with such a field
				text = strings.Replace(text, "name: pieces", "name: payload", 1)
				want = "good.yaml:19:11: field payload: the name belongs to the " + strings.TrimPrefix(c.new, "kind: ") + " envelope"
			}
			_, err := load(map[string]string{"good.yaml": text})
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
	t.Run("all that is wrong is named at once", func(t *testing.T) {
		text := strings.NewReplacer("min: 0", "min: 11", "type: int64", "type: long").Replace(good)
		_, err := load(map[string]string{"good.yaml": text, "empty.yaml": "# nothing\n", "good2.yml": ""})
		if err == nil || err.Error() != "good2.yml: contract files end in .yaml" {
			t.Errorf("%v", err)
		}
		_, err = load(map[string]string{"good.yaml": text, "empty.yaml": "# nothing\n"})
		want := "empty.yaml: is empty\n" +
			"good.yaml:17:10: field weight: min: 11 is greater than max 10\n" +
			`good.yaml:20:11: field pieces: type: unknown type "long": string, int64, double, boolean or timestamp`
		if err == nil || err.Error() != want {
			t.Errorf("%v", err)
		}
	})
}

func TestContractsThatShareATopic(t *testing.T) {
	typed := strings.Replace(good, "key: id", "key: id\ndiscriminator: type", 1) + "  - {name: type, type: string, enum: [%s]}\n"
	one := strings.Replace(typed, "%s", "one", 1)
	two := strings.Replace(strings.Replace(typed, "name: good", "name: other", 1), "%s", "two", 1)
	if _, err := load(map[string]string{"good.yaml": one, "other.yaml": two}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, second, want string }{
		{"without a discriminator", strings.Replace(two, "discriminator: type\n", "", 1),
			"other.yaml: topic goods is described by good.yaml too: give both a discriminator; a file that is to replace an embedded contract must have its name"},
		{"with another discriminator", strings.Replace(strings.Replace(two, "discriminator: type\n", "discriminator: sort\n", 1), "{name: type", "{name: sort", 1),
			"other.yaml: topic goods: the discriminator is sort, but type in good.yaml"},
		{"with the same value", strings.Replace(two, "[two]", "[one]", 1), "other.yaml: topic goods: type is one in good.yaml too"},
		{"of another kind", strings.Replace(two, "kind: json", "kind: connect", 1), "other.yaml: topic goods: the kind is connect, but json in good.yaml"},
		{"with another verdict", strings.Replace(two, "good.invalid", "other.invalid", 1),
			"other.yaml: topic goods: the invalid verdict is dev.example.other.invalid.v1, but dev.example.good.invalid.v1 in good.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(map[string]string{"good.yaml": one, "other.yaml": c.second})
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestFolderOverlaysTheContractsThatShip(t *testing.T) {
	shipped, err := os.ReadFile("contracts/shop-clickstream.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("shop-clickstream.yaml", strings.Replace(string(shipped), "exclusiveMin: 0", "min: 0", 1))
	write("good.yaml", good)
	write("notes.txt", "not a contract")
	write(".hidden.yaml", "not a contract")
	// As Kubernetes mounts a ConfigMap: links into a hidden folder.
	if err := os.Mkdir(filepath.Join(dir, "..data"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("..data/linked.yaml", strings.NewReplacer("name: good", "name: linked", "[goods]", "[linked]").Replace(good))
	if err := os.Symlink("..data/linked.yaml", filepath.Join(dir, "linked.yaml")); err != nil {
		t.Fatal(err)
	}

	set, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{datacenter, "goods", "linked", clickstream, cdc}
	if diff := cmp.Diff(want, set.Topics()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	stream, _ := set.ByTopic(clickstream)
	checkRule(t, stream, envelope(avroSchema, with(eventRow, "price", "0")), "")
	checkRule(t, stream, envelope(avroSchema, with(eventRow, "price", "-1")), "Field price should be at least 0")

	t.Run("a contract of one's own for a topic that has one", func(t *testing.T) {
		write("mine.yaml", strings.NewReplacer("name: good", "name: mine", "[goods]", "["+cdc+"]").Replace(good))
		_, err := Open(dir)
		want := "embedded contract shop-cdc.yaml: topic " + cdc + " is described by " + dir + "/mine.yaml too: give both a discriminator; a file that is to replace an embedded contract must have its name"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
	t.Run("a wrong file", func(t *testing.T) {
		write("mine.yaml", "name: mine\n")
		if _, err := Open(dir); err == nil || !strings.HasPrefix(err.Error(), dir+"/mine.yaml:1:1: kind is missing") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a missing folder", func(t *testing.T) {
		missing := filepath.Join(dir, "missing")
		if _, err := Open(missing); err == nil || err.Error() != "reading contracts folder "+missing+": no such file or directory" {
			t.Errorf("%v", err)
		}
	})
	t.Run("a file for a folder", func(t *testing.T) {
		if _, err := Open(filepath.Join(dir, "notes.txt")); err == nil || !strings.HasPrefix(err.Error(), "reading contracts folder ") {
			t.Errorf("%v", err)
		}
	})
}

func TestRulesOfOnesOwn(t *testing.T) {
	text := good + `  - {name: code, type: string, optional: true, pattern: "[A-Z]{2}[0-9]+"}
  - {name: word, type: string, optional: true, minLength: 3}
  - {name: share, type: double, optional: true, exclusiveMin: 0, max: 1}
  - {name: most, type: int64, optional: true, max: 9007199254740991}
  - {name: big, type: int64, optional: true, exclusiveMin: 9007199254740991, acceptQuoted: true}
  - {name: flag, type: boolean, optional: true, nullable: true}
  - {name: due, type: timestamp, optional: true, formats: [millis, utc]}
`
	set, err := load(map[string]string{"good.yaml": text})
	if err != nil {
		t.Fatal(err)
	}
	stream, _ := set.ByTopic("goods")
	for _, c := range []struct{ member, want string }{
		{`"code":"AB12"`, ""},
		{`"code":"xAB12"`, "Field code should match [A-Z]{2}[0-9]+"},
		{`"code":"AB12\n"`, "Field code should match [A-Z]{2}[0-9]+"},
		{`"word":"日本語"`, ""},
		{`"word":"éé"`, "Field word should have at least 3 characters"},
		{`"share":1`, ""},
		{`"share":0`, "Share should be greater than 0 and at most 1"},
		{`"share":1.0000000000000002`, "Share should be greater than 0 and at most 1"},
		{`"most":9007199254740991`, ""},
		{`"most":9007199254740992`, "Field most should be at most 9007199254740991"},
		{`"most":9223372036854775807`, "Field most should be at most 9007199254740991"},
		{`"big":9007199254740992`, ""},
		{`"big":"9007199254740993"`, ""},
		{`"big":9007199254740991`, "Big should be greater than 9007199254740991"},
		{`"colour":"green"`, "Colour should be one of: red, blue"},
		{`"flag":true`, ""},
		{`"flag":null`, ""},
		{`"flag":"true"`, "Field flag has invalid type"},
		{`"flag":1`, "Field flag has invalid type"},
		{`"due":1`, ""},
		{`"due":"2019-10-01 00:00:00 UTC"`, ""},
		{`"due":"tomorrow"`, "Field due has invalid type"},
		{`"due":null`, "Field due has invalid type"},
	} {
		t.Run(c.member, func(t *testing.T) {
			checkRule(t, stream, `{"id":"a","at":"2019-10-01T00:00:00Z","weight":1,"pieces":2,`+c.member+`}`, c.want)
		})
	}
}

// The README's example is a contract.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(text), "```yaml\n")
	if !ok {
		t.Fatal("no example")
	}
	example, _, _ = strings.Cut(example, "```")
	if _, err := load(map[string]string{"orders.yaml": example}); err != nil {
		t.Error(err)
	}
}
