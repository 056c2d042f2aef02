// Package typha follows a feed of a Typha service by the native protocol: a snapshot of the feed's map, and then every
// change for as long as the program runs, across lost connections and restarts of servers.
//
// [Mirror] holds a copy of the map and keeps it current. Most agents need nothing else:
//
//	mirror := typha.NewMirror(typha.Options{
//		Addresses: []string{"typha-1:5473", "typha-2:5473"},
//		Feed:      "workloads",
//		Agent:     "my-agent",
//	})
//	go mirror.Run(ctx)
//	if err := mirror.WaitInSync(ctx); err != nil {
//		return err
//	}
//	entry, ok := mirror.Get("/core/v1/pods/default/web-1")
//
// [Follow] is for a program that keeps its own state. It calls a function for each event:
//
//	err := typha.Follow(ctx, options, func(event typha.Event) error {
//		switch event := event.(type) {
//		case typha.Batch:
//			for _, change := range event.Changes { ... } // change.Value == nil: the key is gone
//		case typha.StatusChanged:
//			// comes after the batches that it describes
//		case typha.Disconnected:
//			log.Print(event.Err, ", next attempt in ", event.RetryIn)
//		}
//		return nil
//	})
//
// An agent that programs something, such as the kernel, can tell the server how far it is. The server then knows on how
// many nodes a change has taken effect. With Options.ReportsApplied, Follow takes an event for applied once the function
// returns. With a mirror:
//
//	version := mirror.Version()
//	program(mirror.Entries())
//	mirror.Applied(version)
//
// Both verify every snapshot by its digests, report only real differences, and never the deletion of a key that still
// exists. While no server can be reached, or the server has lost its backend, the map keeps its last content.
//
// The protocol is specified in docs/protocol.md of the repository. This client has the level "resuming": after
// a lost connection it tells the server what it has, and is sent what it lacks.
package typha
