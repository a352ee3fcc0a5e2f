package cloudevent

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func TestLine(t *testing.T) {
	for _, tc := range []struct {
		event *rotatorv1.Event
		want  string
	}{
		{&rotatorv1.Event{
			Id: "019", Type: "dev.rotatord.key.rotated.v1", Source: "rotatord/r1", Subject: "keys/k1", Pool: "p", Revision: 7,
			Time: timestamppb.New(time.Date(2026, 1, 25, 10, 0, 0, 5000000, time.UTC)), Trigger: rotatorv1.Trigger_TRIGGER_PROXY,
			KeyId: "k1", NewKeyId: "k2", Generation: 3, Reason: "two\nlines",
		}, `{"specversion":"1.0","id":"019","source":"rotatord/r1","type":"dev.rotatord.key.rotated.v1","subject":"keys/k1",` +
			`"time":"2026-01-25T10:00:00.005Z","datacontenttype":"application/json","data":{"pool":"p","revision":"7",` +
			`"trigger":"TRIGGER_PROXY","reason":"two\nlines","keyId":"k1","newKeyId":"k2","generation":"3"}}` + "\n"},
		{&rotatorv1.Event{Id: "x", Type: "t"},
			`{"specversion":"1.0","id":"x","source":"rotatord","type":"t","datacontenttype":"application/json","data":{}}` + "\n"},
	} {
		got, err := Line(tc.event)
		if err != nil || string(got) != tc.want {
			t.Errorf("event %s:\n%s, %v; want\n%s", tc.event.GetId(), got, err, tc.want)
		}
	}
}
