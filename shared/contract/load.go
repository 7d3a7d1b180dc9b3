package contract

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/millrace-dev/millrace/shared/contract/internal/jsonscan"
	"github.com/millrace-dev/millrace/shared/events"
)

//go:embed contracts/*.yaml
var embedded embed.FS

// Embedded returns the contract files that ship.
func Embedded() fs.FS {
	files, err := fs.Sub(embedded, "contracts")
	if err != nil {
		panic(err) // the path is a constant
	}
	return files
}

// Load reads all contracts (*.yaml) of a folder. The error names every file, line,
// column, field and rule that is wrong.
func Load(fsys fs.FS) (*Set, error) {
	files, err := list(fsys, "")
	if err != nil {
		return nil, err
	}
	return compile(files)
}

// Open reads the contracts that ship and those of a folder over them: a file of
// the same name replaces, any other adds. An empty dir stands for no folder.
func Open(dir string) (*Set, error) {
	files, err := list(Embedded(), "embedded contract ")
	if err != nil {
		return nil, err
	}
	if dir != "" {
		own, err := list(os.DirFS(dir), strings.TrimSuffix(dir, "/")+"/")
		if err != nil {
			return nil, fmt.Errorf("reading contracts folder %s: %w", dir, err)
		}
		for _, f := range own {
			if i := slices.IndexFunc(files, func(e file) bool { return e.name == f.name }); i >= 0 {
				files[i] = f
			} else {
				files = append(files, f)
			}
		}
	}
	return compile(files)
}

// file is a contract file; label says where it is from.
type file struct {
	name, label string
	text        []byte
}

// list reads the *.yaml files of a folder. Hidden files are left out, since a
// mounted ConfigMap keeps its versions in them; links are followed.
func list(fsys fs.FS, label string) ([]file, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
			err = pathErr.Err // the caller names the folder
		}
		return nil, err
	}
	var files []file
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || strings.HasPrefix(name, ".") {
			continue
		}
		if filepath.Ext(name) == ".yml" {
			return nil, fmt.Errorf("%s: contract files end in .yaml", label+name)
		}
		if filepath.Ext(name) != ".yaml" {
			continue
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		files = append(files, file{strings.TrimSuffix(name, ".yaml"), label + name, text})
	}
	return files, nil
}

func compile(files []file) (*Set, error) {
	var contracts []*Contract
	var errs []error
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	for _, f := range files {
		c, err := parse(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		contracts = append(contracts, c)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return assemble(contracts)
}

// assemble joins contracts into the streams of topics and types.
func assemble(contracts []*Contract) (*Set, error) {
	set := &Set{contracts: contracts, topics: map[string]*Stream{}, types: map[string]*Stream{}}
	for _, c := range contracts {
		c.solo = &Stream{contracts: []*Contract{c}}
		for _, topic := range c.Topics {
			if err := join(set.topics, "topic", topic, c); err != nil {
				return nil, err
			}
		}
		for _, typ := range c.Types {
			if err := join(set.types, "type", typ, c); err != nil {
				return nil, err
			}
		}
	}
	tables := map[string]*Contract{}
	for _, c := range contracts {
		if other := tables[c.Table]; other != nil && c.Table != "" {
			return nil, fmt.Errorf("%s: table %s is that of %s too", c.file, c.Table, other.file)
		}
		tables[c.Table] = c
		for _, verdict := range []string{c.Verdicts.Valid, c.Verdicts.Invalid} {
			if other, ok := set.types[verdict]; ok {
				return nil, fmt.Errorf("%s: verdict type %s is a raw type of contract %s: events would go in a circle",
					c.file, verdict, other.contracts[0].Name)
			}
		}
	}
	return set, nil
}

// join adds a contract to the stream of a topic or type. What comes by type, over
// HTTP, may be bare.
func join(streams map[string]*Stream, door, name string, c *Contract) error {
	bare := door == "type"
	s, ok := streams[name]
	if !ok {
		streams[name] = &Stream{contracts: []*Contract{c}, bare: bare}
		return nil
	}
	what := door + " " + name
	first := s.contracts[0]
	switch {
	case c.Discriminator == "" || first.Discriminator == "":
		return fmt.Errorf("%s: %s is described by %s too: give both a discriminator; "+
			"a file that is to replace an embedded contract must have its name", c.file, what, first.file)
	case c.Discriminator != first.Discriminator:
		return fmt.Errorf("%s: %s: the discriminator is %s, but %s in %s", c.file, what, c.Discriminator, first.Discriminator, first.file)
	case c.Kind != first.Kind:
		return fmt.Errorf("%s: %s: the kind is %s, but %s in %s", c.file, what, c.Kind, first.Kind, first.file)
	case c.Verdicts.Invalid != first.Verdicts.Invalid:
		return fmt.Errorf("%s: %s: the invalid verdict is %s, but %s in %s", c.file, what, c.Verdicts.Invalid, first.Verdicts.Invalid, first.file)
	}
	var values []string
	for _, other := range s.contracts {
		values = append(values, other.Field(other.Discriminator).Enum[0])
	}
	value := c.Field(c.Discriminator).Enum[0]
	if i := slices.Index(values, value); i >= 0 {
		return fmt.Errorf("%s: %s: %s is %s in %s too", c.file, what, c.Discriminator, value, s.contracts[i].file)
	}
	s.contracts = append(s.contracts, c)
	s.alone = nil
	for _, each := range s.contracts {
		s.alone = append(s.alone, &Stream{contracts: []*Contract{each}, bare: bare})
	}
	s.oneOf = oneOf(c.Discriminator, append(values, value))
	return nil
}

// checker collects what is wrong with one contract file.
type checker struct {
	file string
	root *ast.File
	errs []error
}

// at adds an error about the node at a YAML path, or the nearest one above it.
func (k *checker) at(path, format string, args ...any) {
	where := k.file
	for p := path; ; {
		if n := k.node(p); n != nil {
			pos := n.GetToken().Position
			where = fmt.Sprintf("%s:%d:%d", k.file, pos.Line, pos.Column)
			break
		}
		cut := strings.LastIndexAny(p, ".[")
		if cut < 1 {
			break
		}
		p = p[:cut]
	}
	k.errs = append(k.errs, fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...)))
}

// node is the node at a path, nil if there is none.
func (k *checker) node(path string) ast.Node {
	p, err := yaml.PathString(path)
	if err != nil {
		return nil
	}
	n, err := p.FilterFile(k.root)
	if err != nil {
		return nil
	}
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		return m.Values[0].Key // its own token is a colon
	}
	return n
}

// typed complains about a scalar that YAML does not read as what is wanted: the
// decoder would turn 12 into "12" and 1.5 into 1.
func (k *checker) typed(path, what, want string, types ...ast.NodeType) bool {
	n := k.node(path)
	if n == nil || slices.Contains(types, n.Type()) {
		return true
	}
	k.at(path, "%s should be %s, not %s", what, want, n.String())
	return false
}

func (k *checker) text(path, what string) bool {
	return k.typed(path, what, "text", ast.StringType, ast.LiteralType)
}

func (k *checker) count(path, what string) { k.typed(path, what, "a whole number", ast.IntegerType) }

func parse(f file) (c *Contract, err error) {
	// The YAML library panics on some texts with tags that do not fit; a contract
	// has no use for tags.
	defer func() {
		if p := recover(); p != nil {
			c, err = nil, fmt.Errorf("%s: cannot be read as YAML: %v", f.label, p)
		}
	}()
	root, err := parser.ParseBytes(f.text, 0)
	if err != nil {
		return nil, yamlError(f.label, err)
	}
	if len(root.Docs) > 1 {
		return nil, fmt.Errorf("%s: holds %d documents: a file is one contract", f.label, len(root.Docs))
	}
	if len(root.Docs) == 0 || root.Docs[0].Body == nil {
		return nil, fmt.Errorf("%s: is empty", f.label)
	}
	c = &Contract{file: f.label}
	if err := yaml.NewDecoder(bytes.NewReader(f.text), yaml.Strict()).Decode(c); err != nil {
		return nil, yamlError(f.label, err)
	}
	k := &checker{file: f.label, root: root}
	k.contract(c, f.name)
	if len(k.errs) > 0 {
		return nil, errors.Join(k.errs...)
	}
	return c, nil
}

// yamlError gives a decoding error the form file:line:column: what.
func yamlError(label string, err error) error {
	var y yaml.Error
	if !errors.As(err, &y) || y.GetToken() == nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	tok, message := y.GetToken(), y.GetMessage()
	var wrongType *yaml.TypeError
	if errors.As(err, &wrongType) && wrongType.DstType != nil {
		message = written(tok.Value) + " is not " + wanted(wrongType.DstType.Kind())
		if colon := tok.Prev; colon != nil && colon.Value == ":" && colon.Prev != nil {
			message = colon.Prev.Value + ": " + message
		}
	}
	return fmt.Errorf("%s:%d:%d: %s", label, tok.Position.Line, tok.Position.Column, message)
}

// written is a token as the author of the file sees it.
func written(token string) string {
	switch token {
	case "[", "-":
		return "a list"
	case "{", ":":
		return "a mapping"
	}
	return strconv.Quote(token)
}

// wanted is what the decoder's target is called in YAML.
func wanted(kind reflect.Kind) string {
	switch kind {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Float64:
		return "a number"
	case reflect.String:
		return "text"
	}
	return "a " + kind.String()
}

var (
	nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	typeRule = regexp.MustCompile(`^[a-z0-9]+(\.[A-Za-z0-9_-]+)+$`)
)

// maxFields bounds the memory that one record can take.
const maxFields = 1000

func (k *checker) contract(c *Contract, fileName string) {
	switch {
	case !k.text("$.name", "name"):
	case c.Name == "":
		k.at("$.name", "name is missing")
	case !nameRule.MatchString(c.Name):
		k.at("$.name", "name %q should be lower-case letters, digits and dashes, at most 63", c.Name)
	case c.Name != fileName:
		k.at("$.name", "name %s should be that of the file, %s", c.Name, fileName)
	}
	switch c.Kind {
	case Connect, Debezium, JSON:
	case "":
		k.at("$.kind", "kind is missing: connect, debezium or json")
	default:
		k.at("$.kind", "unknown kind %q: connect, debezium or json", string(c.Kind))
	}
	if len(c.Topics)+len(c.Types) == 0 {
		k.at("$", "neither topics nor types are named, so no record would ever meet this contract")
	}
	for i, topic := range c.Topics {
		path := fmt.Sprintf("$.topics[%d]", i)
		k.text(path, "topic")
		if topic == "" || slices.Contains(c.Topics[:i], topic) {
			k.at(path, "topic %q is empty or named twice", topic)
		}
	}
	for i, typ := range c.Types {
		path := fmt.Sprintf("$.types[%d]", i)
		k.eventType(path, "type", typ)
		if slices.Contains(c.Types[:i], typ) {
			k.at(path, "type %s is named twice", typ)
		}
	}
	k.eventType("$.verdicts.valid", "verdicts.valid", c.Verdicts.Valid)
	k.eventType("$.verdicts.invalid", "verdicts.invalid", c.Verdicts.Invalid)
	if c.Verdicts.Valid != "" && c.Verdicts.Valid == c.Verdicts.Invalid {
		k.at("$.verdicts.invalid", "both verdicts have type %s", c.Verdicts.Valid)
	}
	k.fields(c)
	if len(k.errs) > 0 {
		return // what follows refers to the fields
	}
	if f := k.reference(c, "$.key", "key", c.Key); f != nil && f.Type != String && f.Type != Int64 {
		k.at("$.key", "key %s is a %s: an entity's key is a string or an int64", c.Key, f.Type)
	}
	if f := k.reference(c, "$.eventTime", "eventTime", c.EventTime); f != nil && f.Type != Timestamp {
		k.at("$.eventTime", "eventTime %s is a %s, not a timestamp", c.EventTime, f.Type)
	}
	if c.Entity == "" {
		c.Entity = c.Key
	} else if f := k.reference(c, "$.entity", "entity", c.Entity); f != nil && f.Type != String && f.Type != Int64 {
		k.at("$.entity", "entity %s is a %s: an entity is a string or an int64", c.Entity, f.Type)
	}
	for i, name := range c.NaturalKey {
		k.reference(c, fmt.Sprintf("$.naturalKey[%d]", i), "naturalKey", name)
		if slices.Contains(c.NaturalKey[:i], name) {
			k.at(fmt.Sprintf("$.naturalKey[%d]", i), "naturalKey: field %s is named twice", name)
		}
	}
	k.table(c)
	k.detect(c)
	if c.Discriminator != "" {
		f := k.reference(c, "$.discriminator", "discriminator", c.Discriminator)
		if f != nil && (f.Type != String || len(f.Enum) != 1) {
			k.at("$.discriminator", "discriminator %s should be a string field with an enum of one value", c.Discriminator)
		}
	}
	if len(k.errs) == 0 {
		c.key, c.eventTime = c.index[c.Key], c.index[c.EventTime]
	}
}

// tableRule is what PostgreSQL takes without quotes, with room for the names that are
// made of it.
var tableRule = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// columns that a stored table has of its own, or that PostgreSQL has.
var ownColumns = []string{"created_at", "tableoid", "xmin", "xmax", "cmin", "cmax", "ctid"}

// maxColumn is PostgreSQL's limit in bytes.
const maxColumn = 63

// table checks what storing asks for.
func (k *checker) table(c *Contract) {
	if c.Table == "" {
		return
	}
	if k.text("$.table", "table") && !tableRule.MatchString(c.Table) {
		k.at("$.table", "table %q should be lower-case letters, digits and underscores, begin with a letter, and be at most 40 long", c.Table)
	}
	if c.Kind == Debezium {
		k.at("$.table", "table: changes of rows are not stored as a series, only records that stay as they are")
	}
	if !slices.Contains(c.NaturalKey, c.EventTime) {
		k.at("$.table", "table: the naturalKey needs the eventTime %s among its fields, since tables are cut by time", c.EventTime)
	}
	for _, name := range c.NaturalKey {
		if f := c.Field(name); f != nil && (f.Optional || f.Nullable) {
			k.at("$.naturalKey", "naturalKey: field %s is optional or nullable, but a stored record needs it", name)
		}
	}
	for i := range c.Fields {
		name := c.Fields[i].Name
		path := fmt.Sprintf("$.fields[%d].name", i)
		if slices.Contains(ownColumns, name) {
			k.at(path, "field %s: a stored table has a column of this name already", name)
		}
		if len(name) > maxColumn {
			k.at(path, "field %s: the name of a stored column has at most %d bytes", name, maxColumn)
		}
	}
}

func (k *checker) eventType(path, what, typ string) {
	switch {
	case typ == "":
		k.at(path, "%s is missing", what)
	case !typeRule.MatchString(typ):
		k.at(path, "%s: %q is not a CloudEvents type such as dev.example.thing.v1", what, typ)
	case typ == events.KafkaRecord:
		k.at(path, "%s: %s is every Kafka record: name the topic instead", what, typ)
	}
}

// reference checks a field's name that is used elsewhere in the contract.
func (k *checker) reference(c *Contract, path, what, name string) *Field {
	if name == "" {
		k.at(path, "%s is missing: the name of a field", what)
		return nil
	}
	f := c.Field(name)
	switch {
	case f == nil:
		k.at(path, "%s: there is no field %s", what, name)
	case what != "naturalKey" && (f.Optional || f.Nullable):
		k.at(path, "%s: field %s is optional or nullable, but every record needs it", what, name)
		return nil
	}
	return f
}

// reserved are names that would be taken for parts of the envelope.
var reserved = map[Kind][]string{
	Connect:  {"schema", "payload"},
	Debezium: {"schema", "payload", "before", "after", "__op", "__lsn", "__deleted"},
}

func (k *checker) fields(c *Contract) {
	if len(c.Fields) == 0 || len(c.Fields) > maxFields {
		k.at("$.fields", "a contract has 1 to %d fields, not %d", maxFields, len(c.Fields))
	}
	c.index = make(map[string]int, len(c.Fields))
	for i := range c.Fields {
		f := &c.Fields[i]
		path := fmt.Sprintf("$.fields[%d]", i)
		k.text(path+".name", "name")
		first, twice := c.index[f.Name]
		switch {
		case f.Name == "":
			k.at(path, "field %d has no name", i+1)
			continue
		case twice:
			k.at(path+".name", "field %s is described twice, first as field %d", f.Name, first+1)
			continue
		case slices.Contains(reserved[c.Kind], f.Name):
			k.at(path+".name", "field %s: the name belongs to the %s envelope", f.Name, c.Kind)
		case len(f.Name) > 128 || strings.ContainsFunc(f.Name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }):
			k.at(path+".name", "field %q: the name is longer than 128 bytes or holds control characters", f.Name)
		}
		c.index[f.Name] = i
		member, _ := jsonscan.AppendString(nil, []byte(f.Name))
		c.members = append(c.members, string(member)+":")
		k.field(path, f)
	}
}

func (k *checker) field(path string, f *Field) {
	complain := func(rule, format string, args ...any) {
		k.at(path+"."+rule, "field %s: %s: %s", f.Name, rule, fmt.Sprintf(format, args...))
	}
	switch f.Type {
	case String, Int64, Double, Boolean, Timestamp:
	case "":
		complain("type", "is missing: string, int64, double, boolean or timestamp")
		return
	default:
		complain("type", "unknown type %q: string, int64, double, boolean or timestamp", string(f.Type))
		return
	}
	number := f.Type == Int64 || f.Type == Double
	for _, rule := range []struct {
		name, only string
		set, fits  bool
	}{
		{"formats", "timestamps", f.Formats != nil, f.Type == Timestamp},
		{"acceptQuoted", "int64", f.AcceptQuoted, f.Type == Int64},
		{"metric", "numbers", f.Metric, number},
		{"enum", "strings", f.Enum != nil, f.Type == String},
		{"minLength", "strings", f.MinLength != 0, f.Type == String},
		{"maxLength", "strings", f.MaxLength != 0, f.Type == String},
		{"pattern", "strings", f.Pattern != "", f.Type == String},
		{"min", "numbers", f.Min != nil, number},
		{"max", "numbers", f.Max != nil, number},
		{"exclusiveMin", "numbers", f.ExclusiveMin != nil, number},
	} {
		if rule.set && !rule.fits {
			complain(rule.name, "is for %s, and the field is a %s", rule.only, f.Type)
		}
	}
	f.says.required = "Field " + f.Name + " is required"
	f.says.invalidType = "Field " + f.Name + " has invalid type"
	k.strings(path, f, complain)
	k.numbers(f, complain)
	if f.Type != Timestamp {
		return
	}
	if len(f.Formats) == 0 {
		complain("formats", "is missing: %s", formatNames)
	}
	for i, format := range f.Formats {
		bit, ok := formatBits[format]
		if !ok || f.formats&bit != 0 {
			complain(fmt.Sprintf("formats[%d]", i), "%q is unknown or named twice: %s", string(format), formatNames)
		}
		f.formats |= bit
	}
}

func (k *checker) strings(path string, f *Field, complain func(rule, format string, args ...any)) {
	k.count(path+".minLength", "minLength")
	k.count(path+".maxLength", "maxLength")
	if f.MinLength < 0 || f.MaxLength < 0 || f.MaxLength > 0 && f.MinLength > f.MaxLength {
		complain("minLength", "%d is negative or greater than maxLength %d", f.MinLength, f.MaxLength)
	}
	if f.Enum != nil && len(f.Enum) == 0 {
		complain("enum", "has no values, so nothing would be valid")
	}
	for i, value := range f.Enum {
		at := fmt.Sprintf("enum[%d]", i)
		k.text(path+"."+at, "field "+f.Name+": enum: a value of a string field")
		if slices.Contains(f.Enum[:i], value) {
			complain(at, "%q is named twice", value)
		}
	}
	if f.Pattern != "" {
		var err error
		if f.pattern, err = regexp.Compile(`^(?:` + f.Pattern + `)$`); err != nil {
			complain("pattern", "%v", err)
		}
	}
	f.says.enum = oneOf(f.Name, f.Enum)
	f.says.pattern = "Field " + f.Name + " should match " + f.Pattern
	switch {
	case f.MinLength > 0 && f.MaxLength > 0:
		f.says.length = fmt.Sprintf("Field %s should have %d to %d characters", f.Name, f.MinLength, f.MaxLength)
	case f.MinLength > 0:
		f.says.length = fmt.Sprintf("Field %s should have at least %d characters", f.Name, f.MinLength)
	default:
		f.says.length = fmt.Sprintf("Field %s should have at most %d characters", f.Name, f.MaxLength)
	}
}

func (k *checker) numbers(f *Field, complain func(rule, format string, args ...any)) {
	for rule, limit := range map[string]*float64{"min": f.Min, "max": f.Max, "exclusiveMin": f.ExclusiveMin} {
		switch {
		case limit == nil:
		case math.IsNaN(*limit) || math.IsInf(*limit, 0):
			complain(rule, "is not a finite number")
		case f.Type == Int64 && (*limit != math.Trunc(*limit) || math.Abs(*limit) >= 1<<53):
			complain(rule, "%s of an int64 is not a whole number below 2^53", decimal(*limit))
		}
	}
	if f.Min != nil && f.ExclusiveMin != nil {
		complain("exclusiveMin", "and min are both given")
	}
	if f.Min != nil && f.Max != nil && *f.Min > *f.Max {
		complain("min", "%s is greater than max %s", decimal(*f.Min), decimal(*f.Max))
	}
	if f.ExclusiveMin != nil && f.Max != nil && *f.ExclusiveMin >= *f.Max {
		complain("exclusiveMin", "%s is not below max %s", decimal(*f.ExclusiveMin), decimal(*f.Max))
	}
	switch {
	case f.ExclusiveMin != nil && f.Max != nil:
		f.says.limits = fmt.Sprintf("%s should be greater than %s and at most %s", label(f.Name), decimal(*f.ExclusiveMin), decimal(*f.Max))
	case f.ExclusiveMin != nil:
		f.says.limits = fmt.Sprintf("%s should be greater than %s", label(f.Name), decimal(*f.ExclusiveMin))
	case f.Min != nil && f.Max != nil:
		f.says.limits = fmt.Sprintf("Field %s should be between %s and %s", f.Name, decimal(*f.Min), decimal(*f.Max))
	case f.Min != nil:
		f.says.limits = fmt.Sprintf("Field %s should be at least %s", f.Name, decimal(*f.Min))
	case f.Max != nil:
		f.says.limits = fmt.Sprintf("Field %s should be at most %s", f.Name, decimal(*f.Max))
	}
}

// oneOf is the references' text for a value outside of an enum.
func oneOf(field string, values []string) string {
	return label(field) + " should be one of: " + strings.Join(values, ", ")
}

// label writes a field's name as the references do at the start of a text:
// event_type is "Event type".
func label(name string) string {
	name = strings.ReplaceAll(name, "_", " ")
	return strings.ToUpper(name[:1]) + name[1:]
}

func decimal(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
