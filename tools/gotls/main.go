// A server on Go's crypto/tls that does in a storm of new clients what the service does: mutual handshakes, then a recorded
// answer for each message of a client, up to the end of a snapshot. A goroutine for each client. It prints its port as JSON
// and ends when its standard input does.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	certificate := flag.String("cert", "", "PEM file of the server's certificate")
	key := flag.String("key", "", "PEM file of its key")
	authority := flag.String("ca", "", "PEM file of the authority of the clients' certificates")
	flag.Parse() // what remains: the files that are sent, one after each message of a client
	var parts [][]byte
	for _, name := range flag.Args() {
		parts = append(parts, read(name))
	}
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	check(err)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(read(*authority))
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates:           []tls.Certificate{pair},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              trusted,
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
	})
	check(err)
	fmt.Printf("{\"port\": %d}\n", listener.Addr().(*net.TCPAddr).Port)
	go func() {
		for {
			connection, err := listener.Accept()
			check(err)
			go serve(connection, parts)
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	check(err)
}

func serve(connection net.Conn, parts [][]byte) {
	defer connection.Close()
	heard := make([]byte, 4096)
	for message := 0; ; message++ {
		if _, err := connection.Read(heard); err != nil {
			return
		}
		if message < len(parts) {
			if _, err := connection.Write(parts[message]); err != nil {
				return
			}
		}
	}
}

func read(name string) []byte {
	content, err := os.ReadFile(name)
	check(err)
	return content
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
