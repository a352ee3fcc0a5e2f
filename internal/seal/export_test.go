package seal

// Parse, Generate and Encode let tests make keysets that no file of ours would hold.
var (
	Parse    = parse
	Generate = generate
	Encode   = encode
)
