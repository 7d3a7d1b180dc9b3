package main

import "testing"

func TestReason(t *testing.T) {
	for data, want := range map[string]string{
		"":                             "",
		"no price":                     "no price",
		"bm8gcHJpY2UK":                 "no price",
		"a2VpbiBQcmVpcywgw7xicmlnZW5z": "kein Preis, übrigens",
		// Letters that are base64 of something, but not of a text.
		"timeouts": "timeouts",
		"AAECAwQF": "AAECAwQF",
	} {
		if got := reason(data); got != want {
			t.Errorf("reason(%q) = %q, want %q", data, got, want)
		}
	}
}
