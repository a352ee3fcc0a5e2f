package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	sigsyaml "sigs.k8s.io/yaml"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// maxSpec is the largest spec file we read, in bytes.
const maxSpec = 1 << 20

// readSpec reads a PoolSpec in its protobuf JSON shape, as YAML. No file is an empty spec; an empty file is a mistake.
func (c *cli) readSpec(file string) (*rotatorv1.PoolSpec, error) {
	if file == "" {
		return &rotatorv1.PoolSpec{}, nil
	}
	text, err := c.readFile(file, maxSpec)
	if err != nil {
		return nil, err
	}
	return parseSpec(fileName(file), text)
}

func parseSpec(name string, text []byte) (*rotatorv1.PoolSpec, error) {
	spec := &rotatorv1.PoolSpec{}
	if err := checkFields(name, text, spec.ProtoReflect().Descriptor()); err != nil {
		return nil, err
	}
	converted, err := sigsyaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, usagef("%s: %v", name, err)
	}
	if err := protojson.Unmarshal(converted, spec); err != nil {
		return nil, usagef("%s: %s", name, protoMessage(err))
	}
	return spec, nil
}

// protoMessage drops the position protojson gives: it is one in the converted JSON, which nobody sees.
func protoMessage(err error) string {
	text := err.Error()
	if _, after, found := strings.Cut(text, "): "); found && strings.Contains(text, "(line ") {
		text = after
	}
	return text + " (text in a place for text needs quotes if it looks like a number, date or yes/no)"
}

// checkFields finds fields the message does not have, and those without a value, with their line, which the JSON decoder
// could not tell.
func checkFields(name string, text []byte, message protoreflect.MessageDescriptor) error {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var doc, second yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return usagef("%s is empty; write {} to mean an empty spec", name)
	} else if err != nil {
		return usagef("%s: %v", name, err)
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return usagef("%s holds more than one YAML document", name)
	}
	if len(doc.Content) == 0 {
		return usagef("%s is empty; write {} to mean an empty spec", name)
	}
	if bad := badFields(name, doc.Content[0], message); len(bad) > 0 {
		return usagef("%s", strings.Join(bad, "\n"))
	}
	return nil
}

func badFields(name string, node *yaml.Node, message protoreflect.MessageDescriptor) []string {
	if node.Kind != yaml.MappingNode {
		return []string{fmt.Sprintf("%s:%d: there should be fields here (%s)", name, node.Line, fieldNames(message))}
	}
	var out []string
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		fd := fieldNamed(message, key.Value)
		if fd == nil {
			out = append(out, fmt.Sprintf("%s:%d: unknown field %q (known: %s)", name, key.Line, key.Value, fieldNames(message)))
			continue
		}
		// The JSON decoder takes null for a field that is not there, and would drop a section that was asked for.
		if value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null" {
			out = append(out, fmt.Sprintf("%s:%d: %s has no value; leave the line out, or write {} for a section with all its defaults", name, key.Line, key.Value))
			continue
		}
		// Messages with a JSON form of their own, such as Duration, are not mappings; the JSON decoder checks them.
		if fd.Message() != nil && !fd.IsMap() && !fd.IsList() && value.Kind == yaml.MappingNode {
			out = append(out, badFields(name, value, fd.Message())...)
		}
	}
	return out
}

func fieldNamed(message protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if fd := message.Fields().ByJSONName(name); fd != nil {
		return fd
	}
	return message.Fields().ByName(protoreflect.Name(name))
}

func fieldNames(message protoreflect.MessageDescriptor) string {
	var out []string
	for i := range message.Fields().Len() {
		out = append(out, message.Fields().Get(i).JSONName())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func specFields() string {
	return fieldNames((&rotatorv1.PoolSpec{}).ProtoReflect().Descriptor())
}
