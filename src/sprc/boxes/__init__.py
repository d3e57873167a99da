"""Region boxes of images: made by saliency or YOLO, written to box files, and drawn."""
