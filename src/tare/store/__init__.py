"""The pantry: blobs, layer trees and images, and the process that turns archives into them and back."""
