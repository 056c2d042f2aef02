module gotls

go 1.26
