// Package cloudevent writes events as CloudEvents in their JSON format, one a line. The relay and the command line share
// it, so that both show an event alike.
//
// It promises one line without line breaks, the same bytes for the same event, and the id, source and type that are the
// event's identity wherever and however often it is delivered.
package cloudevent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// envelope has the attributes of CloudEvents 1.0. What else is known of an event is its data.
type envelope struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject,omitempty"`
	Time            string          `json:"time,omitempty"`
	DataContentType string          `json:"datacontenttype"`
	Data            json.RawMessage `json:"data"`
}

// unknownSource stands for the replica if the record does not say who wrote it: a source must not be empty.
const unknownSource = "rotatord"

// Line is the event as one line of JSON, with its line break. Its data is the contract's Event in protobuf JSON, without
// what the attributes say.
func Line(e *rotatorv1.Event) ([]byte, error) {
	data := proto.CloneOf(e)
	data.Id, data.Type, data.Source, data.Subject, data.Time = "", "", "", "", nil
	text, err := protojson.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("encoding event %s: %w", e.GetId(), err)
	}
	var compact bytes.Buffer // protojson varies its white space on purpose
	if err := json.Compact(&compact, text); err != nil {
		return nil, fmt.Errorf("encoding event %s: %w", e.GetId(), err)
	}
	env := envelope{
		SpecVersion: "1.0", ID: e.GetId(), Source: e.GetSource(), Type: e.GetType(), Subject: e.GetSubject(),
		DataContentType: "application/json", Data: compact.Bytes(),
	}
	if env.Source == "" {
		env.Source = unknownSource
	}
	if e.GetTime() != nil {
		env.Time = e.GetTime().AsTime().UTC().Format(time.RFC3339Nano)
	}
	line, err := json.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("encoding event %s: %w", e.GetId(), err)
	}
	return append(line, '\n'), nil
}
