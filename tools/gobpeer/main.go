// Command gobpeer speaks Typha's protocol with Go's own encoding/gob, to test other implementations against.
//
//	gobpeer client ADDRESS SYNCER [flags]   follows a server; prints what it says, or with -map the map in the end
//	gobpeer server [flags]                  serves a scripted map on a port of its own to one client after the other
//	gobpeer decode                          decodes messages from standard input until its end
//
// Everything is printed as JSON, one object on a line.
package main

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: gobpeer client|server|decode ...")
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "client":
		err = runClient(os.Args[2:])
	case "server":
		err = runServer(os.Args[2:])
	case "decode":
		err = decode(os.Stdin)
	default:
		err = fmt.Errorf("no mode %q", os.Args[1])
	}
	if err != nil {
		say(map[string]any{"error": err.Error()})
		os.Exit(1)
	}
}

func say(object map[string]any) {
	line, err := json.Marshal(object)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

func decode(input io.Reader) error {
	decoder := gob.NewDecoder(bufio.NewReader(input))
	for {
		var received envelope
		if err := decoder.Decode(&received); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		say(described(received.Message))
	}
}
