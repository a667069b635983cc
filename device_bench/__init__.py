"""What a .tflite file costs on the device it is for."""
