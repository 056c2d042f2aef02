// Command yamlref reads YAML with the libraries of Kubernetes' own tools, to test other readers against.
//
//	yamlref documents   reads each text as one document, with YAMLToJSON of sigs.k8s.io/yaml
//	yamlref streams     reads each text as a file with any number of YAML or JSON documents, as kubectl does
//
// Each line of standard input is a text, as a JSON string in base64: YAML need not be UTF-8. Each is answered by a line with a
// JSON object: "json" has the documents' JSON, each as a string, and "error" says why there are no more of them.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const lookAhead = 4096 // kubectl's own

type answer struct {
	JSON  []string `json:"json"`
	Error string   `json:"error,omitempty"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: yamlref documents|streams")
		os.Exit(2)
	}
	read := map[string]func([]byte) answer{"documents": document, "streams": stream}[os.Args[1]]
	if read == nil {
		fmt.Fprintf(os.Stderr, "yamlref: no mode %q\n", os.Args[1])
		os.Exit(2)
	}
	input, output := json.NewDecoder(bufio.NewReader(os.Stdin)), bufio.NewWriter(os.Stdout)
	defer output.Flush()
	for {
		var text []byte
		if err := input.Decode(&text); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "yamlref:", err)
			os.Exit(1)
		}
		line, err := json.Marshal(read(text))
		if err != nil {
			panic(err)
		}
		output.Write(append(line, '\n'))
	}
}

func document(text []byte) answer {
	found, err := yaml.YAMLToJSON(text)
	if err != nil {
		return answer{JSON: []string{}, Error: err.Error()}
	}
	return answer{JSON: []string{string(found)}}
}

func stream(text []byte) answer {
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), lookAhead)
	result := answer{JSON: []string{}}
	for {
		var found json.RawMessage
		err := decoder.Decode(&found)
		if errors.Is(err, io.EOF) {
			return result
		}
		if err != nil {
			result.Error = err.Error()
			return result
		}
		if len(found) == 0 { // a document without content
			found = json.RawMessage("null")
		}
		result.JSON = append(result.JSON, string(found))
	}
}
