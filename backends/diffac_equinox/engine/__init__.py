"""What runs an algorithm: compiling, devices, random numbers, replay on a device, states as arrays, exports."""
