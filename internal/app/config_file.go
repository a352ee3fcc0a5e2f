package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"
)

// readFile collects the settings of a YAML file. It is strict: what is unknown, double or of another type is an error
// that names the field and the line. Values are never shown, in case one is a secret in the wrong place.
func (o *options) readFile(path string) ([]setting, []error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, []error{fmt.Errorf("%s: reading the configuration: %w", o.given[optConfig], err)}
	}
	root, err := document(text)
	if err != nil {
		return nil, []error{fmt.Errorf("%s: %w", path, err)}
	}
	if root == nil { // nothing but comments
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, []error{fmt.Errorf("%s:%d: the file must be a mapping such as `listen: %s`, it is a %s", path, root.Line, defaultListen, kindName(root))}
	}
	return o.readFields(path, root)
}

// document parses the one document of a file; nil if there is none.
func document(text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, fmt.Errorf("line %d: a second document begins; the configuration is one document", second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	return root, nil
}

func (o *options) readFields(path string, root *yaml.Node) (settings []setting, problems []error) {
	seen := make(map[string]int)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := fmt.Sprintf("%s:%d: %s", path, key.Line, key.Value)
		if first := seen[key.Value]; first != 0 {
			problems = append(problems, fmt.Errorf("%s is given twice, first in line %d", at, first))
			continue
		}
		seen[key.Value] = key.Line
		if err := o.checkField(key); err != nil {
			problems = append(problems, fmt.Errorf("%s %w", at, err))
			continue
		}
		values, err := o.fieldValues(key.Value, value)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s %w", at, err))
			continue
		}
		settings = append(settings, setting{key.Value, values, at})
	}
	return settings, problems
}

func (o *options) checkField(key *yaml.Node) error {
	switch {
	case key.Kind != yaml.ScalarNode || o.flags.Lookup(key.Value) == nil:
		return fmt.Errorf("is not a known field%s; the fields are the flags of rotatord --help", didYouMean("", nearest(key.Value, o.names())))
	case key.Value == optConfig || key.Value == optHelp || key.Value == optVersion:
		return errors.New("can be given on the command line only")
	}
	return nil
}

// fieldValues checks a value's type and gives it as a flag would have it.
func (o *options) fieldValues(option string, value *yaml.Node) ([]string, error) {
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	flag := o.flags.Lookup(option)
	_, many := flag.Value.(*list)
	if many && value.Kind == yaml.SequenceNode {
		return items(value)
	}
	want := "!!str"
	if flag.Value.Type() == "bool" {
		want = "!!bool"
	}
	switch {
	case value.Kind == yaml.ScalarNode && value.ShortTag() == want:
		return []string{value.Value}, nil
	case value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null":
		return nil, errors.New("has no value; leave the line out for the default")
	}
	return nil, fmt.Errorf("must be %s, it is a %s", fileType(flag.Value.Type()), kindName(value))
}

func items(sequence *yaml.Node) (values []string, err error) {
	if len(sequence.Content) == 0 {
		return nil, errors.New("is an empty list; leave the line out for the default")
	}
	for _, item := range sequence.Content {
		if item.Kind != yaml.ScalarNode || item.ShortTag() != "!!str" {
			return nil, fmt.Errorf("must be a list of strings, the item in line %d is a %s", item.Line, kindName(item))
		}
		values = append(values, item.Value)
	}
	return values, nil
}

func fileType(flagType string) string {
	switch flagType {
	case "bool":
		return "true or false"
	case "duration":
		return "a duration such as 10s"
	case "list":
		return "a list of strings"
	}
	return "a string (put it in quotes)"
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "mapping"
	case yaml.SequenceNode:
		return "list"
	case yaml.AliasNode:
		return "alias"
	}
	switch n.ShortTag() {
	case "!!str":
		return "string"
	case "!!int", "!!float":
		return "number"
	case "!!bool":
		return "truth value"
	case "!!timestamp":
		return "date"
	}
	return "value of type " + n.ShortTag()
}
