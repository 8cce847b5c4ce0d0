"""Messages in: decoded, put in order once, and what is odd about them counted.  Pure but for the inbox itself."""
