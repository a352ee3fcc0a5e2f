package provider

// Passed are the variables of the environment that a command gets.
var Passed = passed
