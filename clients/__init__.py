"""What an agent on a node uses to follow a feed: updates and status as they come, or a mirror that holds the map.

Imports `protocol` and nothing else of this project, so that an agent carries no part of the service.
"""
