"""What tests of several parts share: servers, peers, stand-ins and the places of recorded data."""
