package main

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/millrace-dev/millrace/shared/model"
)

func TestQuickRequestTakesWhatClientsSend(t *testing.T) {
	for _, body := range []string{
		inferRequest(1), inferRequest(10),
		`{"id":"a-1","inputs":[{"name":"price","shape":[2],"datatype":"FP64","data":[1.5,null]}]}`,
		"\n{ \"inputs\" : [ {\"name\" : \"x\", \"shape\":[1, 2],\"datatype\":\"INT64\",\r\n\t\"data\" : [ [ -0, 1E3 ] ] } ] } \n",
	} {
		if _, ok := quickRequest([]byte(body)); !ok {
			t.Errorf("the slow way for %s", body)
		}
	}
}

// FuzzQuickRequest holds reading by hand to encoding/json: what it takes is read the
// same, number by number.
func FuzzQuickRequest(f *testing.F) {
	for _, body := range []string{
		inferRequest(2),
		`{"id":"a","inputs":[{"name":"price","shape":[2],"datatype":"FP64","data":[1.5,null]},{"name":"b","shape":[1,1],"datatype":"INT8","data":[[1],[2]]}]}`,
		`{"inputs":[{"name":"x","shape":[1.0],"datatype":"FP64","data":[1e400,1E-7,123456789012345678901234567890,0.1e1,-0.0]}],"id":"\u0041"}`,
		`{"inputs":[{"name":"x","name":"y","shape":[],"datatype":"","data":[[[1]],"a",true,{}]}],"outputs":[{"name":"predict"}]}`,
		`{"inputs":[{"name":"x","data":[01,-,1.,.5,+1,1e,nul]}]} x`,
		`{"Inputs":[],"inputs":null}`, `{}`, ` `, `[1]`,
		`{"inputs":[{"data":[9007199254740993,0.3,2.2250738585072011e-308,5e-324,179769313486231570000000]}]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, ok := quickRequest(body)
		if !ok {
			return
		}
		var want v2Request
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(v2Tensor{})); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		for i := range got.Inputs {
			numbers := got.Inputs[i].numbers
			if numbers == nil {
				continue
			}
			var elements []float64
			slow := v2Tensor{Datatype: "FP64", Data: want.Inputs[i].Data}
			if err := slow.scan(len(numbers), func(v model.Value) { elements = append(elements, v.Float()) }); err != nil {
				t.Fatal(err)
			}
			for j := range elements {
				if math.Float64bits(elements[j]) != math.Float64bits(numbers[j]) && !(math.IsNaN(elements[j]) && math.IsNaN(numbers[j])) {
					t.Fatalf("element %d is %v, encoding/json says %v", j, numbers[j], elements[j])
				}
			}
		}
	})
}

// FuzzNumber holds numbers to encoding/json both ways.
func FuzzNumber(f *testing.F) {
	for _, text := range []string{"0", "-0", "1.5", "1e21", "1e-7", "123456789.123456789", "9007199254740993", "1e400", "-", "00", "0.1", "99999999999999999999", "1e-324"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := reader{b: []byte(text)}
		got, ok := r.number()
		if ok = ok && r.at == len(text); !ok {
			return
		}
		var want float64
		if err := json.Unmarshal([]byte(text), &want); err != nil || math.Float64bits(got) != math.Float64bits(want) {
			t.Fatalf("%q is %v, encoding/json says %v %v", text, got, want, err)
		}
		written, err := json.Marshal(want)
		if err != nil || !bytes.Equal(appendNumber(nil, want), written) {
			t.Fatalf("%v is written as %s, encoding/json says %s %v", want, appendNumber(nil, want), written, err)
		}
	})
}

func TestResponseIsAsEncodingJSONWritesIt(t *testing.T) {
	for _, r := range []v2Response{
		{ModelName: "m_1", ModelVersion: "2026-11-22.1", Outputs: []v2Output{{output, "FP64", []int{3}, []float64{0.1, 1e-9, -1e300}}}},
		{ModelName: "m", ModelVersion: "1", ID: `a "b" <c> ` + strings.Repeat("é", 3), Outputs: []v2Output{{output, "FP64", []int{1, 2}, []float64{0, 123456789}}}},
	} {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := appendResponse(nil, &r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s %v, want %s", got, err, want)
		}
	}
}
